"""The verbs for those who look for a defect: `debug dump`."""

from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import CommandError, examples, local_options, require_free
from .output import emit

if TYPE_CHECKING:
    from bflnode.node.home import Home


@click.group(epilog=examples("bflnode debug dump", "bflnode debug dump --home node0 -o report.tar.gz"))
def debug() -> None:
    """Collect what a bug report needs."""


@debug.command("dump", epilog=examples("bflnode debug dump", "bflnode debug dump -o report.tar.gz --json"))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write; default: here, with the time.")
@click.option("--force", is_flag=True, help="Write over an existing file.")
@local_options
def debug_dump(output: Path | None, force: bool, home: "Home", as_json: bool) -> None:
    """Write an archive (.tar.gz) for a bug report, of a running or a stopped node.

    In it: versions, machine, settings, status, peers, agreement, learning rounds, recent blocks, the ends of the logs,
    metrics, journal, names and sizes of files, and of a running node what each of its tasks is doing. Never in it:
    keys, credentials, secrets in settings, models, training data. Logs and peers name addresses: look before you send.
    """
    from bflnode.node.diagnosis.debug_dump import write_dump

    target = output or Path(f"bflnode-debug-{datetime.now(UTC):%Y%m%d-%H%M%S}.tar.gz")
    require_free(target, force)
    try:
        done = write_dump(home, target)
    except OSError as error:
        raise CommandError(
            f"cannot make {target}: {error.strerror or error} ({error.filename or home.root})"
        ) from error
    emit(asdict(done), as_json, _render)


def _render(answer: dict[str, Any]) -> None:
    state = "a running" if answer["is_running"] else "a stopped"
    click.echo(f"wrote {answer['file']}: {len(answer['parts'])} parts of {state} node, without keys and data")
    for name, error in answer["errors"].items():
        click.echo(f"  not in it: {name}: {error}")
