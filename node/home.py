"""The home of a node: which file is where, how keys are kept, and how a new home is made.

HOME/config/config.toml        settings (see `configuration`)
HOME/config/genesis.json       the chain
HOME/config/account.key        the account's Ed25519 seed, hexadecimal or under a passphrase, mode 0600
HOME/config/peer.key           the libp2p identity's seed, hexadecimal, mode 0600
HOME/config/admission.json     a credential that opens the account, where there is one
HOME/config/network.key        the key of a private network, where there is one, mode 0600
HOME/data/chain/               LevelDB
HOME/data/chain.joining/       that, in the making from a snapshot of a peer
HOME/data/snapshots/           states after some blocks, for nodes that join
HOME/data/blobs/               models by content
HOME/data/rounds/              what this node did in each learning round (see `journal`)
HOME/data/evidence/            proofs of double signatures that this node found and no block has yet
HOME/data/signer.wal           what this node has signed
HOME/data/shard.npz            the node's own data, where it is not elsewhere
HOME/data/test.npz             the global test set, where there is one
HOME/data/scratch/             files in the making
HOME/data/peers.json           addresses at which peers were met
HOME/data/bans.json            who is banned
HOME/run/                      sockets and logs of the running node
"""

import errno
import json
import os
import secrets
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

from bflnode.consensus.genesis import MAX_GENESIS_TEXT, Genesis, GenesisError, parse_genesis
from bflnode.consensus.keys import SecretKey, parse_account
from bflnode.consensus.types import AccountId, Signature
from bflnode.storage.durable import write_durably

from .protected_key import ProtectedKey, ProtectedKeyError, is_protected, known_passphrase

KEY_MODE = 0o600
"""Key files are for their owner only."""

MAX_SMALL_FILE = 64 * 1024
"""Characters of a key or credential that are read: far more than either has."""


class HomeError(Exception):
    """A home that can't be used. The message names the file, what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class Home:
    """Paths of one node's home."""

    root: Path

    @property
    def configuration_file(self) -> Path:
        """Settings, TOML."""
        return self.root / "config" / "config.toml"

    @property
    def genesis_file(self) -> Path:
        """The chain's genesis, JSON."""
        return self.root / "config" / "genesis.json"

    @property
    def account_key_file(self) -> Path:
        """Seed of the key that signs transactions and votes."""
        return self.root / "config" / "account.key"

    @property
    def peer_key_file(self) -> Path:
        """Seed of the libp2p identity."""
        return self.root / "config" / "peer.key"

    @property
    def admission_file(self) -> Path:
        """Credential that opens the account."""
        return self.root / "config" / "admission.json"

    @property
    def chain(self) -> Path:
        """Directory of the block store."""
        return self.root / "data" / "chain"

    @property
    def joining_chain(self) -> Path:
        """Directory of a block store that is being made from a snapshot of a peer."""
        return self.root / "data" / "chain.joining"

    @property
    def snapshots(self) -> Path:
        """Directory of the snapshots."""
        return self.root / "data" / "snapshots"

    @property
    def blobs(self) -> Path:
        """Directory of the blob store."""
        return self.root / "data" / "blobs"

    @property
    def rounds(self) -> Path:
        """Directory of the journal."""
        return self.root / "data" / "rounds"

    @property
    def evidence(self) -> Path:
        """Directory of evidence that waits for a block."""
        return self.root / "data" / "evidence"

    @property
    def signer_wal(self) -> Path:
        """The signer's write-ahead log."""
        return self.root / "data" / "signer.wal"

    @property
    def shard(self) -> Path:
        """Default place of the node's own data."""
        return self.root / "data" / "shard.npz"

    @property
    def test_set(self) -> Path:
        """The global test set."""
        return self.root / "data" / "test.npz"

    @property
    def scratch(self) -> Path:
        """Files in the making, on the same disk as the blobs that they become."""
        return self.root / "data" / "scratch"

    @property
    def address_book_file(self) -> Path:
        """Addresses at which peers were met, JSON."""
        return self.root / "data" / "peers.json"

    @property
    def bans_file(self) -> Path:
        """Banned peers and addresses, JSON."""
        return self.root / "data" / "bans.json"

    @property
    def network_key_file(self) -> Path:
        """Default place of a private network's key."""
        return self.root / "config" / "network.key"

    @property
    def run(self) -> Path:
        """Sockets and logs of the running node."""
        return self.root / "run"

    @property
    def address_file(self) -> Path:
        """Where the running node writes its RPC address and multiaddrs, JSON."""
        return self.run / "node.json"

    @property
    def log_file(self) -> Path:
        """Log of a node that was started in the background."""
        return self.run / "node.log"

    def require(self) -> Self:
        """Check that this is an initialised home.

        Raises:
            HomeError: it is not.
        """
        if not self.genesis_file.is_file():
            raise HomeError(
                f"{self.root} is not the home of a node ({self.genesis_file} is missing): "
                "make one with `bflnode init --home DIR --genesis FILE`, or a whole network with `bflnode testnet init`"
            )
        return self

    def load_genesis(self) -> Genesis:
        """Read the chain's genesis.

        Raises:
            HomeError: unreadable or not a genesis.
        """
        return read_genesis(self.genesis_file)

    def load_account(self) -> AccountId:
        """Read which account this home has; needs no passphrase.

        Raises:
            HomeError: the key file can't be used.
        """
        return read_account(self.account_key_file)

    def load_account_key(self) -> SecretKey:
        """Read the account's key; asks for its passphrase where it has one.

        Raises:
            HomeError: the key file can't be used, or the passphrase is wrong or missing.
        """
        return SecretKey.from_seed(read_seed(self.account_key_file))

    def load_peer_seed(self) -> bytes:
        """Read the seed of the libp2p identity."""
        return read_seed(self.peer_key_file)

    def load_credential(self) -> Signature | None:
        """Read the admission credential of this account, if there is one.

        Raises:
            HomeError: the file is not a credential of this home's account.
        """
        if not self.admission_file.exists():
            return None
        account, credential = read_credential(self.admission_file)
        if account != self.load_account():
            raise HomeError(f"{self.admission_file} admits another account than this home's: ask for one of your own")
        return credential


def read_genesis(path: Path) -> Genesis:
    """Read a genesis file.

    Raises:
        HomeError: unreadable or not a genesis.
    """
    try:
        return parse_genesis(_beginning(path, MAX_GENESIS_TEXT + 1))
    except OSError as error:
        raise HomeError(f"cannot read the genesis {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise HomeError(f"the genesis {path} is not text: {error.reason}") from error
    except GenesisError as error:
        raise HomeError(f"the genesis {path} is not valid: {error}") from error


def _beginning(path: Path, characters: int, *, encoding: str = "utf-8") -> str:
    """So much of a file, or all: one that somebody else gave may be larger than the memory."""
    with path.open(encoding=encoding) as file:
        return file.read(characters)


def read_credential(path: Path) -> tuple[AccountId, Signature]:
    """Read an admission credential: `{"account": …, "credential": …}`.

    Raises:
        HomeError: unreadable or malformed.
    """
    try:
        content = json.loads(_beginning(path, MAX_SMALL_FILE))
        account = parse_account(content["account"])
        credential = bytes.fromhex(content["credential"])
    except OSError as error:
        raise HomeError(f"cannot read the admission credential {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise HomeError(f"{path} is not an admission credential ({error}): ask for a new one") from error
    if len(credential) != 64:
        raise HomeError(f"{path}: a credential has 64 bytes, not {len(credential)}: ask for a new one")
    return account, Signature(credential)


def make_home(root: Path, *, account_seed: bytes | None = None) -> Home:
    """Make the folders and keys of a new home. Its genesis, which whoever fills it writes last, makes it a home.

    Keys of a home whose making was interrupted are kept.

    Args:
        root: must not hold a home already.
        account_seed: 32 bytes to take as the account's key; drawn from the system when not given.

    Raises:
        HomeError: there is a home already, or another key, or the folder can't be written.
    """
    home = Home(root)
    if home.genesis_file.exists():
        raise HomeError(f"{root} already holds a node's keys: take another --home, or go on with this one")
    try:
        for directory in (home.configuration_file.parent, home.rounds, home.run):
            directory.mkdir(parents=True, exist_ok=True)
        for path, seed in ((home.account_key_file, account_seed), (home.peer_key_file, None)):
            if not path.exists():
                write_seed(path, seed or secrets.token_bytes(32))
            elif seed is not None and read_secret_key(path).seed != seed:
                raise HomeError(f"{path} is the key of another account: take another --home")
    except OSError as error:
        raise HomeError(
            f"cannot make a home in {root}: {error.strerror}: choose a folder that you may write and that has room"
        ) from error
    return home


def write_seed(path: Path, seed: bytes) -> None:
    """Write a key file that nobody else can read, and never over an existing one."""
    if path.exists():
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(path))
    write_durably(path, f"{seed.hex()}\n".encode("ascii"), mode=KEY_MODE)


def replace_key_file(path: Path, text: str) -> None:
    """Write a key file anew, readable by its owner only: after a crash there is the old one or the new one.

    Raises:
        HomeError: it can't be written.
    """
    try:
        write_durably(path, text.encode("ascii"), mode=KEY_MODE)
    except OSError as error:
        raise HomeError(f"cannot write the key {path}: {error.strerror}; it is as it was") from error


def read_seed(path: Path) -> bytes:
    """Read 32 secret bytes from a key file; asks for its passphrase where it has one.

    Raises:
        HomeError: unreadable, readable by others, not 64 hexadecimal digits, or under another passphrase.
    """
    text = read_key_file(path)
    return _unlocked(path, text) if is_protected(text) else _plain_seed(path, text)


def read_account(path: Path) -> AccountId:
    """Read whose key a file holds; a protected one says it without its passphrase.

    Raises:
        HomeError: unreadable, readable by others, or not a key.
    """
    text = read_key_file(path)
    if not is_protected(text):
        return SecretKey.from_seed(_plain_seed(path, text)).account
    try:
        return ProtectedKey.from_text(text).account
    except ProtectedKeyError as error:
        raise HomeError(f"the key {path} {error}") from error


def read_key_file(path: Path) -> str:
    """Read the text of a key file that nobody else can read.

    Raises:
        HomeError: unreadable, readable by others, or no text.
    """
    try:
        mode = path.stat().st_mode & 0o777
        text = _beginning(path, MAX_SMALL_FILE, encoding="ascii")
    except OSError as error:
        raise HomeError(f"cannot read the key {path}: {error.strerror}") from error
    except ValueError as error:
        raise HomeError(f"the key {path} is not 64 hexadecimal digits: restore it from a backup") from error
    if mode & 0o077:
        raise HomeError(f"the key {path} can be read by others (mode {mode:o}): run `chmod 600 {path}`")
    return text


def _plain_seed(path: Path, text: str) -> bytes:
    try:
        seed = bytes.fromhex(text.strip())
    except ValueError as error:
        raise HomeError(f"the key {path} is not 64 hexadecimal digits: restore it from a backup") from error
    if len(seed) != 32:
        raise HomeError(f"the key {path} has {len(seed)} bytes instead of 32: restore it from a backup")
    return seed


@cache
def _unlocked(path: Path, text: str) -> bytes:
    """The seed in a protected file; asked for once in a process, which keeps its key in memory anyway."""
    try:
        return ProtectedKey.from_text(text).open(known_passphrase(path))
    except ProtectedKeyError as error:
        raise HomeError(f"the key {path} {error}") from error


def read_secret_key(path: Path) -> SecretKey:
    """Read a key file, for instance a network's admission key.

    Raises:
        HomeError: unreadable, readable by others, or not a key.
    """
    return SecretKey.from_seed(read_seed(path))
