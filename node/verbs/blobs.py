"""The verbs `model pin` and `model unpin`: which models are never removed to make room.

Pins are files beside the models, so a running node takes them into account from its next pruning on.
"""

from typing import TYPE_CHECKING, Any

import click

from .options import CommandError, examples, local_options, reading
from .output import emit, table

if TYPE_CHECKING:
    from bflnode.consensus.types import BlobId
    from bflnode.node.home import Home
    from bflnode.storage.blob_store import Pins

ID_DIGITS = 64


@click.command("pin", epilog=examples("bflnode model pin 77c1", "bflnode model pin"))
@click.argument("identifier", metavar="ID", default="")
@local_options
def model_pin(identifier: str, home: "Home", as_json: bool) -> None:
    """Never remove a model or sample file from this disk, however old it gets; without ID list what is pinned.

    ID is 64 digits, or the first digits of a model that `bflnode model list` shows. Works on a running node too.
    """
    from bflnode.storage.blob_store import Pins

    pins = Pins(home.require().blobs)
    if identifier:
        _change(home, identifier, as_json, is_pin=True)
        return
    rows = sorted(blob.hex() for blob in pins.all())
    emit({"pinned": rows}, as_json, lambda _: table(["model id"], [(row,) for row in rows], empty="nothing is pinned"))


@click.command("unpin", epilog=examples("bflnode model unpin 77c1", "bflnode model unpin 77c1 --json"))
@click.argument("identifier", metavar="ID")
@local_options
def model_unpin(identifier: str, home: "Home", as_json: bool) -> None:
    """Take a pin back: the model goes when it is old enough, or when its room is wanted."""
    _change(home.require(), identifier, as_json, is_pin=False)


def _change(home: "Home", identifier: str, as_json: bool, *, is_pin: bool) -> None:
    from bflnode.storage.blob_store import Pins

    pins = Pins(home.blobs)
    blob = _pinned(pins, identifier) if not is_pin else _known(home, identifier)
    is_changed = pins.add(blob) if is_pin else pins.remove(blob)
    answer: dict[str, Any] = {"id": blob.hex(), "is_pinned": is_pin, "is_changed": is_changed}
    state = "pinned" if is_pin else "not pinned any more"
    emit(answer, as_json, lambda shown: click.echo(f"{shown['id']} is {state}" + ("" if is_changed else ", as before")))


def _known(home: "Home", identifier: str) -> "BlobId":
    """An id in full as it is, whatever it is of; first digits are looked up among the models of the chain."""
    digits = identifier.strip().lower()
    if not _is_whole(digits):
        with reading(home) as reader:
            digits = reader.call("model", identifier=digits)["id"]
    return _blob(digits)


def _pinned(pins: "Pins", identifier: str) -> "BlobId":
    digits = identifier.strip().lower()
    found: list[BlobId] = [blob for blob in sorted(pins.all()) if digits and blob.hex().startswith(digits)]
    if len(found) != 1:
        how_many = "no pinned model begins" if not found else f"{len(found)} pinned models begin"
        raise CommandError(f"{how_many} with {identifier}: `bflnode model pin` lists them")
    return found[0]


def _is_whole(digits: str) -> bool:
    return len(digits) == ID_DIGITS and not digits.strip("0123456789abcdef")


def _blob(digits: str) -> "BlobId":
    from bflnode.consensus.types import BlobId

    return BlobId(bytes.fromhex(digits))
