import base64
import json
from pathlib import Path

import pytest

from bflnode.consensus.keys import SecretKey, account_text
from bflnode.node.diagnosis.secrets_removal import REMOVED, Secrets, without_secrets
from bflnode.node.home import Home, make_home

SEED = bytes(range(7, 39))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return make_home(tmp_path / "home", account_seed=SEED)


@pytest.mark.parametrize(
    "form",
    [
        SEED,
        SEED.hex().encode(),
        SEED.hex().upper().encode(),
        base64.b64encode(SEED),
        base64.b64encode(SEED).rstrip(b"="),
        base64.urlsafe_b64encode(SEED),
    ],
)
def test_a_key_is_removed_in_every_form_that_programs_write(home: Home, form: bytes) -> None:
    assert Secrets(home).remove_from(b"before " + form + b" after") == b"before [removed] after"


def test_other_files_in_the_folder_of_keys_are_secret_too_and_the_account_is_not(home: Home) -> None:
    account = account_text(SecretKey.from_seed(SEED).account)
    credential = "ab" * 64
    home.admission_file.write_text(json.dumps({"account": account, "credential": credential}))
    (home.root / "config" / "network.key").write_text(f"/key/swarm/psk/1.0.0/\n/base16/\n{'cd' * 32}\n")
    text = f"{account} {credential} {'cd' * 32} {'CD' * 32}"
    assert Secrets(home).remove_from(text.encode()).decode() == f"{account} {REMOVED} {REMOVED} {REMOVED}"


def test_values_of_settings_that_are_named_like_a_secret_are_removed(
    home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home.configuration_file.write_text('name = "visible-name"\n[rpc]\ntoken = "hunter2hunter2"\n')
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("correct horse battery staple\n")
    monkeypatch.setenv("BFLNODE_PASSPHRASE_FILE", str(passphrase))
    monkeypatch.setenv("BFLNODE_RPC__PASSWORD", "from-the-environment")
    text = "visible-name hunter2hunter2 correct horse battery staple from-the-environment"
    assert Secrets(home).remove_from(text.encode()).decode() == f"visible-name {REMOVED} {REMOVED} {REMOVED}"


def test_a_home_without_keys_has_no_secrets(tmp_path: Path) -> None:
    assert Secrets(Home(tmp_path)).remove_from(b"all of it") == b"all of it"


def test_a_password_in_a_url_is_removed_and_the_url_stays(home: Home) -> None:
    text = b'GET http://user:pass@proxy.example:3128/a?b=c@d, "ssh://git@host" /dns/a/tcp/1/p2p/12D3 me@mail.example'

    assert Secrets(home).remove_from(text) == (
        b'GET http://[removed]@proxy.example:3128/a?b=c@d, "ssh://[removed]@host" /dns/a/tcp/1/p2p/12D3 me@mail.example'
    )


def test_settings_are_shown_without_what_is_named_like_a_secret() -> None:
    settings = {"name": "n", "p2p": {"psk": "x", "port": 1, "peers": ["a"]}, "rpc": {"token": "", "tls_key_file": "k"}}
    assert without_secrets(settings) == {
        "name": "n",
        "p2p": {"psk": REMOVED, "port": 1, "peers": ["a"]},
        "rpc": {"token": "", "tls_key_file": REMOVED},
    }
