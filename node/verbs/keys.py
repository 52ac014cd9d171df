"""The verbs that put a key file under a passphrase, and take it away again; the other verbs of keys: `accounts`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import CommandError, examples, home_option, require_terminal

if TYPE_CHECKING:
    from bflnode.node.home import Home

key_file_option = click.option(
    "--key-file", type=click.Path(path_type=Path), help="Another key file, such as a network's admission key."
)


@click.command("protect", epilog=examples("bflnode keys protect", "bflnode keys protect --key-file admission.key"))
@key_file_option
@home_option
def keys_protect(key_file: Path | None, home: "Home") -> None:
    """Put the account's key under a passphrase: read from BFLNODE_PASSPHRASE_FILE, else asked for."""
    from bflnode.node.home import read_key_file, read_seed, replace_key_file
    from bflnode.node.protected_key import MIN_PASSPHRASE_LENGTH, ProtectedKey, is_protected

    path = _chosen(key_file, home)
    if is_protected(read_key_file(path)):
        raise CommandError(f"{path} is protected already; `bflnode keys unprotect` first, to change the passphrase")
    seed = read_seed(path)
    passphrase = _new_passphrase(path)
    if len(passphrase.decode("utf-8", "replace")) < MIN_PASSPHRASE_LENGTH:
        raise CommandError(f"a passphrase has at least {MIN_PASSPHRASE_LENGTH} characters: take four words or more")
    protected = ProtectedKey.seal(seed, passphrase)
    assert protected.open(passphrase) == seed, "what was sealed opens again"
    replace_key_file(path, protected.to_text())
    click.echo(f"{path} is protected. Keep the passphrase: without it the account is lost")
    click.echo("Copies made earlier, backups too, still hold the key in the clear: delete them")


@click.command("unprotect", epilog=examples("bflnode keys unprotect"))
@key_file_option
@home_option
def keys_unprotect(key_file: Path | None, home: "Home") -> None:
    """Take the passphrase away from the account's key."""
    from bflnode.node.home import read_key_file, read_seed, replace_key_file
    from bflnode.node.protected_key import is_protected

    path = _chosen(key_file, home)
    if not is_protected(read_key_file(path)):
        raise CommandError(f"{path} is not protected")
    replace_key_file(path, f"{read_seed(path).hex()}\n")
    click.echo(f"{path} holds the key in the clear now, readable by you alone")


def _chosen(key_file: Path | None, home: "Home") -> Path:
    return home.require().account_key_file if key_file is None else key_file


def _new_passphrase(path: Path) -> bytes:
    from bflnode.node.protected_key import ProtectedKeyError, passphrase_from_file

    try:
        given = passphrase_from_file()
    except ProtectedKeyError as error:
        raise CommandError(f"the key {path} {error}") from error
    if given is not None:
        return given
    require_terminal("name a file that has the passphrase in BFLNODE_PASSPHRASE_FILE")
    asked: str = click.prompt("New passphrase", hide_input=True, confirmation_prompt=True)
    return asked.encode()
