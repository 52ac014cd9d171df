"""The key of a private network: 32 bytes that all its nodes share, without which no connection comes about."""

from pathlib import Path

from bflnode.node.configuration import Configuration
from bflnode.node.home import Home, HomeError, read_seed


def network_key_path(home: Home, configuration: Configuration) -> Path | None:
    """Where the key is; None for an open network. A relative path is meant from the home's `config`."""
    text = configuration.p2p.private_key_file
    if not text:
        return None
    path = Path(text).expanduser()
    return path if path.is_absolute() else home.network_key_file.parent / path


def load_network_key(home: Home, configuration: Configuration) -> str | None:
    """The key as 64 hexadecimal digits; None for an open network.

    Raises:
        HomeError: the file is missing, readable by others, or not a key.
    """
    path = network_key_path(home, configuration)
    return None if path is None else read_network_key(path)


def read_network_key(path: Path) -> str:
    """Read a key file.

    Raises:
        HomeError: the file is missing, readable by others, or not a key.
    """
    try:
        return read_seed(path).hex()
    except HomeError as error:
        raise HomeError(
            f"the private network's key: {error} (p2p.private_key_file; `openssl rand -hex 32` makes one)"
        ) from error
