"""Taking a home's secrets out of text that leaves it: logs and settings in a bug report.

What is secret: every file in `config/` but settings and genesis (keys, credentials), and every setting or environment
variable whose name says so, with the content of the file where it names one. They are looked for in each form that a
program may write them in.
"""

import base64
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from bflnode.consensus.keys import account_text
from bflnode.node.home import Home, HomeError

REMOVED = "[removed]"

ENVIRONMENT_PREFIX = "BFLNODE_"
"""Start of the environment variables that are settings."""

SECRET_NAME = re.compile(r"secret|password|passphrase|token|psk|seed|private|credential|key", re.IGNORECASE)
"""Names of settings that hold secrets, today's and tomorrow's: a path too much removed is no loss."""

TOKEN = re.compile(rb"[A-Za-z0-9+/=_\-]{16,}")
"""What may be a secret in a file of them: shorter ones could be guessed anyway, and would remove ordinary words."""

CREDENTIALS_IN_URL = re.compile(rb"://[^\s/@\"']{1,256}@")
"""User and password as in http://user:password@host: of a proxy, say, in an error that somebody else's code wrote."""

MIN_LENGTH = 8
"""Shorter ones aren't removed: they would take ordinary words along, and are no secrets."""

MAX_SECRET_FILE_BYTES = 64 * 1024
"""Largest file in `config/` that is searched: a key has 65 bytes, a credential 300."""


class Secrets:
    """The secrets of one home, found once; what can't be read can't be removed, so it raises."""

    def __init__(self, home: Home) -> None:
        """Read them.

        Raises:
            OSError: a file in `config/` can't be read.
        """
        public = _public(home)
        found = {form for secret in _secrets(home) if secret not in public for form in _forms(secret)}
        self._forms = tuple(sorted((form for form in found if form not in public), key=len, reverse=True))

    def remove_from(self, data: bytes) -> bytes:
        """The data without any of them, and without passwords in URLs."""
        for form in self._forms:
            data = data.replace(form, REMOVED.encode())
        return CREDENTIALS_IN_URL.sub(b"://" + REMOVED.encode() + b"@", data)


def without_secrets(settings: Any) -> Any:
    """Settings in which everything is replaced that is named like a secret."""
    if isinstance(settings, Mapping):
        return {
            name: REMOVED if SECRET_NAME.search(str(name)) and value else without_secrets(value)
            for name, value in settings.items()
        }
    return [without_secrets(value) for value in settings] if isinstance(settings, list | tuple) else settings


def _secrets(home: Home) -> Iterator[bytes]:
    folder = home.configuration_file.parent
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if path.is_file() and path not in (home.configuration_file, home.genesis_file):
            yield from _content(path)
    if home.configuration_file.is_file():
        # Where it can't be read, nobody has read secrets from it either.
        with suppress(tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError):
            yield from _named(tomllib.loads(home.configuration_file.read_text(encoding="utf-8")))
    named = {name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT_PREFIX)}
    yield from _named(named)


def _named(settings: Mapping[str, Any]) -> Iterator[bytes]:
    """Values of settings that are named like a secret."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _named(value)
        elif isinstance(value, str) and SECRET_NAME.search(name):
            yield value.encode()
            yield from _content(Path(value).expanduser())


def _content(path: Path) -> Iterator[bytes]:
    """What is in a file of secrets, as a whole and word by word; nothing where there is no such file."""
    if path.is_file():
        with path.open("rb") as file:
            data = file.read(MAX_SECRET_FILE_BYTES)
        yield data.strip()
        yield from TOKEN.findall(data)


def _public(home: Home) -> frozenset[bytes]:
    """What stands in the files of secrets but is known to everybody: this node's account."""
    found: list[bytes] = []
    with suppress(HomeError):
        account = home.load_account()
        found += [account_text(account).encode(), account.hex().encode(), account]
    return frozenset(found)


def _forms(secret: bytes) -> Iterable[bytes]:
    """How a secret may be written: as it is, as bytes, in hexadecimal, in base64."""
    raws = {secret}
    with suppress(ValueError):
        raws.add(bytes.fromhex(secret.decode("ascii")))
    forms = {secret, secret.lower(), secret.upper()}
    for raw in raws:
        encoded = (base64.b64encode(raw), base64.urlsafe_b64encode(raw))
        forms |= {raw, raw.hex().encode(), raw.hex().upper().encode(), *encoded}
        forms |= {text.rstrip(b"=") for text in encoded}
    return {form for form in forms if len(form) >= MIN_LENGTH}
