"""Key files under a passphrase: Argon2id (RFC 9106) makes a key of it, libsodium's secretbox seals the seed with that.

    file = one line of JSON: {"account": …, "memory_kib": …, "passes": …, "protected": 1, "salt": hex, "sealed": hex}

The account is readable without the passphrase, so that only what signs has to ask for it; it is compared when the file
is opened. Where files lie is `home`'s business. Here: the format, and where a passphrase comes from.
"""

import getpass
import json
import os
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from nacl.exceptions import CryptoError
from nacl.pwhash import argon2id
from nacl.secret import SecretBox

from bflnode.consensus.keys import SecretKey, account_text, parse_account
from bflnode.consensus.types import AccountId

PASSPHRASE_FILE_VARIABLE = "BFLNODE_PASSPHRASE_FILE"
"""Names a file with the passphrase, for nodes that nobody sits in front of."""

FORMAT = 1

PASSES = argon2id.OPSLIMIT_MODERATE
MEMORY_KIB = argon2id.MEMLIMIT_MODERATE // 1024
"""libsodium's "moderate": 3 passes over 256 MiB, half a second. Above RFC 9106's second choice (3 passes, 64 MiB)."""

MAX_PASSES = 16
MAX_MEMORY_KIB = 4 * 1024 * 1024
"""Most that a file may ask for: 4 GiB, libsodium's own bound; a damaged file must not take the machine."""

MIN_PASSPHRASE_LENGTH = 12
"""Characters. A thief of the file tries a few passphrases a second on each core: four words last, a name doesn't."""

MAX_PASSPHRASE_BYTES = 1024
"""Of a file with a passphrase; a larger one is the wrong file."""


class ProtectedKeyError(Exception):
    """A protected key that can't be opened; the message goes on after the name of the file, and says what to do."""


@dataclass(frozen=True, slots=True)
class ProtectedKey:
    """What stands in a protected key file."""

    account: AccountId
    passes: int
    memory_kib: int
    salt: bytes
    sealed: bytes

    @classmethod
    def seal(cls, seed: bytes, passphrase: bytes) -> Self:
        """Protect a seed by a passphrase."""
        salt = secrets.token_bytes(argon2id.SALTBYTES)
        box = SecretBox(_derived(passphrase, salt, PASSES, MEMORY_KIB))
        account = SecretKey.from_seed(seed).account
        return cls(account, PASSES, MEMORY_KIB, salt, bytes(box.encrypt(seed)))

    def open(self, passphrase: bytes) -> bytes:
        """The seed.

        Raises:
            ProtectedKeyError: the passphrase is wrong, or the file is damaged.
        """
        try:
            seed = SecretBox(_derived(passphrase, self.salt, self.passes, self.memory_kib)).decrypt(self.sealed)
        except CryptoError as error:
            raise ProtectedKeyError("doesn't open: the passphrase is wrong, or the file is damaged") from error
        except MemoryError as error:
            raise ProtectedKeyError(f"needs {self.memory_kib // 1024} MiB of memory to open: free some") from error
        if len(seed) != 32 or SecretKey.from_seed(seed).account != self.account:
            raise ProtectedKeyError("holds the key of another account than it says: restore it from a backup")
        return seed

    def to_text(self) -> str:
        """The file's content."""
        content = {
            "account": account_text(self.account),
            "memory_kib": self.memory_kib,
            "passes": self.passes,
            "protected": FORMAT,
            "salt": self.salt.hex(),
            "sealed": self.sealed.hex(),
        }
        return json.dumps(content, sort_keys=True) + "\n"

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read a file's content.

        Raises:
            ProtectedKeyError: it is damaged, or of a later version.
        """
        try:
            content: dict[str, Any] = json.loads(text)
            version = content["protected"]
            key = cls(
                parse_account(content["account"]),
                content["passes"],
                content["memory_kib"],
                bytes.fromhex(content["salt"]),
                bytes.fromhex(content["sealed"]),
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ProtectedKeyError("is damaged: restore it from a backup") from error
        if version != FORMAT:
            raise ProtectedKeyError("is protected in a way unknown to this version: use the one that protected it")
        key._require_bounds()
        return key

    def _require_bounds(self) -> None:
        is_right = (
            type(self.passes) is int
            and type(self.memory_kib) is int
            and argon2id.OPSLIMIT_MIN <= self.passes <= MAX_PASSES
            and argon2id.MEMLIMIT_MIN // 1024 <= self.memory_kib <= MAX_MEMORY_KIB
            and len(self.salt) == argon2id.SALTBYTES
        )
        if not is_right:
            raise ProtectedKeyError("is damaged: restore it from a backup")


def is_protected(text: str) -> bool:
    """Whether the content of a key file is a protected key; a plain one is hexadecimal digits."""
    return text.lstrip().startswith("{")


def known_passphrase(path: Path) -> bytes:
    """The passphrase of a key file, from the file that the environment names, or from whoever sits at the terminal.

    Raises:
        ProtectedKeyError: there is neither, or the file can't be used.
    """
    given = passphrase_from_file()
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise ProtectedKeyError(
            "is protected by a passphrase: put it into a file with mode 600 and name that in "
            f"{PASSPHRASE_FILE_VARIABLE}, or run this in a terminal and in the foreground"
        )
    return getpass.getpass(f"Passphrase of {path}: ").encode()


def passphrase_from_file() -> bytes | None:
    """The passphrase in the file that the environment names; None where it names none.

    Raises:
        ProtectedKeyError: the file can't be used.
    """
    name = os.environ.get(PASSPHRASE_FILE_VARIABLE)
    if not name:
        return None
    try:
        mode = Path(name).stat().st_mode & 0o777
        with Path(name).open("rb") as file:
            passphrase = file.read(MAX_PASSPHRASE_BYTES + 1).rstrip(b"\r\n")
    except OSError as error:
        raise ProtectedKeyError(f"can't be opened: no passphrase in {name}: {error.strerror}") from error
    if mode & 0o077:
        raise ProtectedKeyError(f"can't be opened: others can read {name} (mode {mode:o}): run `chmod 600 {name}`")
    if not 0 < len(passphrase) <= MAX_PASSPHRASE_BYTES:
        raise ProtectedKeyError(f"can't be opened: {name} is empty, or no passphrase")
    return passphrase


def _derived(passphrase: bytes, salt: bytes, passes: int, memory_kib: int) -> bytes:
    derived: bytes = argon2id.kdf(SecretBox.KEY_SIZE, passphrase, salt, opslimit=passes, memlimit=memory_kib * 1024)
    return derived
