"""Keys under a passphrase: what signs needs it, what only names the account doesn't, damage and thieves get nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from nacl.pwhash import argon2id

from bflnode.consensus.keys import SecretKey, account_text
from bflnode.node import protected_key
from bflnode.node.home import Home, HomeError, make_home, read_account, read_secret_key
from bflnode.node.protected_key import PASSPHRASE_FILE_VARIABLE, ProtectedKey, ProtectedKeyError
from bflnode.node.verbs import keys as verbs_of_keys
from tests.node.command_line import run

SEED = bytes(range(32))
PASSPHRASE = b"correct horse battery staple"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least that libsodium takes: what is slow in the real setting isn't tested here."""
    monkeypatch.setattr(protected_key, "PASSES", argon2id.OPSLIMIT_MIN)
    monkeypatch.setattr(protected_key, "MEMORY_KIB", argon2id.MEMLIMIT_MIN // 1024)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = make_home(tmp_path / "home", account_seed=SEED)
    made.genesis_file.write_text("{}")
    return made


@pytest.fixture
def passphrase_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "passphrase"
    path.write_bytes(PASSPHRASE + b"\n")
    path.chmod(0o600)
    monkeypatch.setenv(PASSPHRASE_FILE_VARIABLE, str(path))
    return path


def test_a_sealed_key_opens_with_its_passphrase_alone() -> None:
    sealed = ProtectedKey.seal(SEED, PASSPHRASE)
    assert ProtectedKey.from_text(sealed.to_text()).open(PASSPHRASE) == SEED
    assert sealed.account == SecretKey.from_seed(SEED).account
    assert SEED.hex() not in sealed.to_text()
    with pytest.raises(ProtectedKeyError, match="the passphrase is wrong"):
        sealed.open(PASSPHRASE + b"x")


def test_two_seals_of_one_key_share_nothing() -> None:
    first, second = (ProtectedKey.seal(SEED, PASSPHRASE) for _ in range(2))
    assert first.salt != second.salt
    assert first.sealed != second.sealed


def test_the_real_setting_is_libsodiums_moderate_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert (protected_key.PASSES, protected_key.MEMORY_KIB) == (3, 256 * 1024)


@pytest.mark.parametrize("position", range(0, 72, 5))
def test_a_flipped_bit_in_what_is_sealed_is_noticed(position: int) -> None:
    sealed = ProtectedKey.seal(SEED, PASSPHRASE)
    damaged = bytearray(sealed.sealed)
    damaged[position] ^= 4
    content = json.loads(sealed.to_text()) | {"sealed": damaged.hex()}
    with pytest.raises(ProtectedKeyError, match="damaged"):
        ProtectedKey.from_text(json.dumps(content)).open(PASSPHRASE)


@pytest.mark.parametrize(
    "change",
    [
        {"passes": 10**9},
        {"passes": True},
        {"memory_kib": 2**40},
        {"memory_kib": 1.5},
        {"salt": "ab"},
        {"sealed": "zz"},
        {"account": "ab"},
        {"account": 7},
    ],
)
def test_a_file_that_asks_for_too_much_or_is_damaged_is_refused(change: dict[str, Any]) -> None:
    content = json.loads(ProtectedKey.seal(SEED, PASSPHRASE).to_text()) | change
    with pytest.raises(ProtectedKeyError, match="is damaged"):
        ProtectedKey.from_text(json.dumps(content))


def test_the_key_of_another_account_than_stated_is_refused() -> None:
    other = account_text(SecretKey.from_seed(bytes(32)).account)
    content = json.loads(ProtectedKey.seal(SEED, PASSPHRASE).to_text()) | {"account": other}
    with pytest.raises(ProtectedKeyError, match="another account"):
        ProtectedKey.from_text(json.dumps(content)).open(PASSPHRASE)


def test_protect_and_unprotect_keep_the_key(home: Home, passphrase_file: Path) -> None:
    assert run("keys", "protect", "--home", home.root).exit_code == 0
    text = home.account_key_file.read_text()
    assert SEED.hex() not in text
    assert home.account_key_file.stat().st_mode & 0o777 == 0o600
    assert home.load_account_key() == SecretKey.from_seed(SEED)
    assert run("keys", "unprotect", "--home", home.root).exit_code == 0
    assert home.account_key_file.read_text() == SEED.hex() + "\n"


def test_the_account_is_known_without_the_passphrase(home: Home, passphrase_file: Path) -> None:
    run("keys", "protect", "--home", home.root)
    passphrase_file.unlink()
    assert home.load_account() == SecretKey.from_seed(SEED).account
    shown = run("keys", "show", "--json", "--home", home.root)
    assert json.loads(shown.stdout)["account"] == account_text(SecretKey.from_seed(SEED).account)


def test_without_terminal_and_file_the_error_says_where_to_put_the_passphrase(
    home: Home, passphrase_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("keys", "protect", "--home", home.root)
    monkeypatch.delenv(PASSPHRASE_FILE_VARIABLE)
    with pytest.raises(HomeError, match=f"protected by a passphrase: put it into a file.*{PASSPHRASE_FILE_VARIABLE}"):
        home.load_account_key()


def test_a_wrong_passphrase_is_named_and_the_next_try_may_be_right(home: Home, passphrase_file: Path) -> None:
    run("keys", "protect", "--home", home.root)
    passphrase_file.write_bytes(b"something else entirely")
    with pytest.raises(HomeError, match=r"account\.key doesn't open: the passphrase is wrong"):
        home.load_account_key()
    passphrase_file.write_bytes(PASSPHRASE)
    assert home.load_account_key().seed == SEED


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [(b"", 0o600, "empty"), (b"x" * 2_000, 0o600, "no passphrase"), (PASSPHRASE, 0o644, "others can read")],
)
def test_a_passphrase_file_that_can_not_be_right_is_refused(
    home: Home, passphrase_file: Path, content: bytes, mode: int, message: str
) -> None:
    run("keys", "protect", "--home", home.root)
    passphrase_file.write_bytes(content)
    passphrase_file.chmod(mode)
    with pytest.raises(HomeError, match=message):
        home.load_account_key()


def test_a_passphrase_is_asked_for_twice_and_must_be_long(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verbs_of_keys, "require_terminal", lambda _: None)  # click's runner types, but is none
    short = run("keys", "protect", "--home", home.root, typed="short\nshort\n")
    assert (short.exit_code, "at least 12 characters" in short.output) == (1, True)
    assert home.account_key_file.read_text() == SEED.hex() + "\n"
    typed = PASSPHRASE.decode()
    done = run("keys", "protect", "--home", home.root, typed=f"{typed}\nanother one\n{typed}\n{typed}\n")
    assert done.exit_code == 0
    assert typed not in done.output
    assert ProtectedKey.from_text(home.account_key_file.read_text()).open(PASSPHRASE) == SEED


def test_a_key_is_protected_once_and_unprotected_once(home: Home, passphrase_file: Path) -> None:
    assert "is not protected" in run("keys", "unprotect", "--home", home.root).output
    run("keys", "protect", "--home", home.root)
    assert "is protected already" in run("keys", "protect", "--home", home.root).output


def test_another_key_file_can_be_protected(home: Home, passphrase_file: Path, tmp_path: Path) -> None:
    admission = tmp_path / "admission.key"
    admission.write_text(SEED.hex())
    admission.chmod(0o600)
    assert run("keys", "protect", "--key-file", admission, "--home", home.root).exit_code == 0
    assert read_secret_key(admission).seed == SEED
    assert read_account(admission) == SecretKey.from_seed(SEED).account
