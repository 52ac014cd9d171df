"""Settings: flag > environment > file > default, and every mistake named."""

from pathlib import Path

import pytest

from bflnode.node.configuration import Configuration, load_configuration, shard_path
from bflnode.node.home import Home, HomeError, make_home


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return make_home(tmp_path)


def write(home: Home, text: str) -> None:
    home.configuration_file.write_text(text, encoding="utf-8")


def test_a_home_without_settings_has_the_defaults(home: Home) -> None:
    configuration = load_configuration(home)
    assert configuration.p2p.port == 26656
    assert configuration.rpc.host == "127.0.0.1"
    assert configuration.training.enabled
    assert shard_path(home, configuration) == home.shard


def test_a_flag_beats_the_environment_which_beats_the_file(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home, '[p2p]\nport = 1\nhost = "10.0.0.1"\nmax_peers = 7\n[rpc]\nport = 4\n')
    monkeypatch.setenv("BFLNODE_P2P__PORT", "2")
    monkeypatch.setenv("BFLNODE_P2P__HOST", "10.0.0.2")
    p2p = load_configuration(home, {"p2p": {"port": 3}}).p2p
    assert (p2p.port, p2p.host, p2p.max_peers) == (3, "10.0.0.2", 7)


def test_a_relative_home_of_the_user_is_expanded_in_the_shards_path(home: Home) -> None:
    write(home, '[training]\nshard = "~/data.npz"\n')
    assert shard_path(home, load_configuration(home)) == Path.home() / "data.npz"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[p2p]\nport = 70000\n", "p2p.port"),
        ("[p2p]\nprot = 1\n", "p2p.prot: there is no such setting"),
        ('[training]\ndevice = "tpu"\n', "training.device"),
        ('log_level = "loud"\n', "log_level"),
        ("p2p = 3\n", "p2p"),
        ("[p2p", "config.toml is not valid TOML"),
        ("unknown = 1\n", "unknown"),
    ],
)
def test_a_mistake_in_the_file_is_named(home: Home, text: str, named: str) -> None:
    write(home, text)
    with pytest.raises(HomeError, match=named):
        load_configuration(home)


def test_a_file_that_is_not_text_is_named(home: Home) -> None:
    home.configuration_file.write_bytes(b"\xff\xfe")
    with pytest.raises(HomeError, match=r"config\.toml"):
        load_configuration(home)


def test_a_file_that_cannot_be_read_is_named(home: Home) -> None:
    home.configuration_file.mkdir()
    with pytest.raises(HomeError, match=r"config\.toml"):
        load_configuration(home)


def test_a_bad_environment_variable_is_named(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BFLNODE_RPC__PORT", "many")
    with pytest.raises(HomeError, match=r"rpc\.port"):
        load_configuration(home)


def test_settings_cannot_be_changed_while_running(home: Home) -> None:
    configuration = load_configuration(home)
    with pytest.raises(ValueError, match="frozen"):
        configuration.name = "other"
    assert isinstance(configuration, Configuration)
