"""Homes: keys are private and whole, what is wrong is named with the file and what to do."""

import json
import stat
from pathlib import Path

import pytest

from bflnode.consensus.keys import SecretKey, account_text
from bflnode.node.home import Home, HomeError, make_home, read_credential, read_genesis, write_seed


def test_a_new_home_has_two_different_keys_that_only_the_owner_can_read(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home")
    for path in (home.account_key_file, home.peer_key_file):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert home.load_account_key().seed != home.load_peer_seed()
    assert home.load_credential() is None


def test_a_home_is_not_made_over_another(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    key = home.load_account_key()
    home.genesis_file.touch()
    with pytest.raises(HomeError, match="already holds a node's keys"):
        make_home(tmp_path)
    assert home.load_account_key() == key


def test_a_home_whose_making_was_interrupted_keeps_its_keys(tmp_path: Path) -> None:
    home = make_home(tmp_path, account_seed=bytes([7]) * 32)
    keys = home.load_account_key(), home.load_peer_seed()
    assert make_home(tmp_path).load_account_key() == keys[0]
    assert make_home(tmp_path, account_seed=bytes([7]) * 32).load_peer_seed() == keys[1]
    with pytest.raises(HomeError, match="the key of another account: take another --home"):
        make_home(tmp_path, account_seed=bytes([8]) * 32)
    assert (home.load_account_key(), home.load_peer_seed()) == keys


def test_a_given_seed_becomes_the_account(tmp_path: Path) -> None:
    home = make_home(tmp_path, account_seed=bytes([7]) * 32)
    assert home.load_account_key() == SecretKey.from_seed(bytes([7]) * 32)


def test_a_key_file_is_never_overwritten(tmp_path: Path) -> None:
    write_seed(tmp_path / "key", bytes(32))
    with pytest.raises(FileExistsError):
        write_seed(tmp_path / "key", bytes([1]) * 32)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("", "0 bytes instead of 32"),
        ("ab" * 31, "31 bytes instead of 32"),
        ("no hex", "not 64 hexadecimal digits"),
        ("é", "not 64 hexadecimal digits"),
    ],
)
def test_a_damaged_key_is_named_with_what_to_do(tmp_path: Path, content: str, fault: str) -> None:
    home = make_home(tmp_path)
    home.account_key_file.write_text(content, encoding="utf-8")
    with pytest.raises(HomeError, match=f"account.key.*{fault}.*restore it from a backup"):
        home.load_account_key()


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    home.account_key_file.chmod(0o640)
    with pytest.raises(HomeError, match=r"can be read by others \(mode 640\): run `chmod 600"):
        home.load_account_key()


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(HomeError, match=r"cannot read the key .*peer\.key: No such file"):
        Home(tmp_path).load_peer_seed()


def test_a_folder_that_is_no_home_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(HomeError, match=r"is not the home of a node .*`bflnode init"):
        Home(tmp_path).require()


@pytest.mark.parametrize(("content", "fault"), [(b"{", "not valid"), (b"\xff", "not text"), (b"{}", "not valid")])
def test_a_bad_genesis_is_named(tmp_path: Path, content: bytes, fault: str) -> None:
    path = tmp_path / "genesis.json"
    path.write_bytes(content)
    with pytest.raises(HomeError, match=f"genesis.json is {fault}"):
        read_genesis(path)


def test_a_genesis_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(HomeError, match="cannot read the genesis"):
        read_genesis(tmp_path / "genesis.json")


KEY = SecretKey.from_seed(bytes([3]) * 32)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "3",
        "{}",
        json.dumps({"account": 3, "credential": "00" * 64}),
        json.dumps({"account": account_text(KEY.account)}),
        json.dumps({"account": account_text(KEY.account), "credential": "zz"}),
        json.dumps({"account": account_text(KEY.account), "credential": None}),
        json.dumps({"account": account_text(KEY.account), "credential": "00" * 63}),
        json.dumps({"account": account_text(KEY.account)[:-1] + "x", "credential": "00" * 64}),
    ],
)
def test_a_bad_credential_is_named_with_what_to_do(tmp_path: Path, content: str) -> None:
    path = tmp_path / "admission.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(HomeError, match=r"admission\.json.*ask for a new one"):
        read_credential(path)


def test_a_credential_of_another_account_is_refused(tmp_path: Path) -> None:
    home = make_home(tmp_path)
    content = {"account": account_text(KEY.account), "credential": "00" * 64}
    home.admission_file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(HomeError, match="admits another account than this home's"):
        home.load_credential()
