"""The verbs that carry, shorten or repair the chain of a stopped home: export, import, prune, rollback, check.

Reading the chain is `chain`'s. These hold the home's lock, so that no node starts meanwhile.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import VERIFICATION_FAILED, CommandError, examples, local_options, require_free, require_terminal
from .output import emit, facts, size_text

if TYPE_CHECKING:
    from bflnode.node.home import Home

FILE = click.Path(path_type=Path, allow_dash=True)
HEIGHT = click.IntRange(1)


@contextmanager
def _progress(what: str, first: int, last: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error, where that is a terminal; called with each height that is done."""
    if not sys.stderr.isatty():
        yield lambda _height: None
        return
    with click.progressbar(length=last - first + 1, label=what, file=sys.stderr, show_pos=True) as bar:
        yield lambda _height: bar.update(1)


def _speed(blocks: int, seconds: float) -> str:
    return f"{blocks} blocks in {seconds:.1f} s, {blocks / max(seconds, 1e-6):.0f} blocks/s"


def _say(answer: dict[str, Any], as_json: bool, text: str, *, to_stderr: bool = False) -> None:
    if to_stderr:
        click.echo(text, err=True)
    else:
        emit(answer, as_json, lambda _answer: click.echo(text))


@click.command(
    "export",
    epilog=examples(
        "bflnode chain export backup.chain",
        "bflnode chain export --from 1000 --to 2000 part.chain",
        "bflnode chain export - | ssh other bflnode chain import -",
    ),
)
@click.argument("file", type=FILE)
@click.option("--from", "first", type=HEIGHT, help="First height; default: the first that is here.")
@click.option("--to", "last", type=HEIGHT, help="Last height; default: the tip.")
@click.option("--force", is_flag=True, help="Write over an existing file.")
@local_options
def chain_export(file: Path, first: int | None, last: int | None, force: bool, home: "Home", as_json: bool) -> None:
    """Write the blocks of a stopped node into FILE, with the commits that make them final; `-` is standard output.

    The file has all of the chain that others need to verify it, but no models, no keys and no settings.
    """
    from bflnode.node.stored_chain import open_store, stopped
    from bflnode.node.sync.chain_transfer import STANDARD_STREAM, export_chain, export_range

    is_stream = file == STANDARD_STREAM
    if not is_stream:
        require_free(file, force)
    if is_stream and sys.stdout.isatty():
        raise click.UsageError("blocks are no text: send standard output into a file or another program.")
    with stopped(home), open_store(home) as store:
        head = export_range(store, first, last)
        started_s = time.monotonic()
        with _progress("exporting", head.first, head.last) as progress:
            export_chain(store, head, file, progress)
        seconds = time.monotonic() - started_s
    answer = {
        "file": str(file),
        "chain_id": head.chain_id.hex(),
        "first": head.first,
        "last": head.last,
        "blocks": head.blocks,
        "seconds": seconds,
    }
    text = f"exported blocks {head.first} to {head.last}: {_speed(head.blocks, seconds)}"
    _say(answer, as_json, text, to_stderr=is_stream)


@click.command(
    "import", epilog=examples("bflnode chain import backup.chain", "zcat backup.chain.gz | bflnode chain import -")
)
@click.argument("file", type=FILE)
@local_options
def chain_import(file: Path, home: "Home", as_json: bool) -> None:
    """Verify the blocks in FILE and append those that a stopped node lacks; `-` is standard input.

    Nothing in the file is believed: every block is executed, every commit's signatures and every root are checked.
    An import may be interrupted at any time: what was appended stays, and the same command goes on from there. Exit
    code 4 comes with the first block that is wrong, 1 with a file that is cut off or of another chain.
    """
    from bflnode.node.stored_chain import open_store, stopped
    from bflnode.node.sync.chain_transfer import ImportFaultError, import_chain, open_archive
    from bflnode.storage.archive import MalformedArchiveError

    with stopped(home), open_archive(file) as archive, open_store(home) as store:
        started_s = time.monotonic()
        with _progress("importing", archive.head.first, archive.head.last) as progress:
            try:
                done = import_chain(store, archive, progress)
            except (ImportFaultError, MalformedArchiveError) as error:
                raise CommandError(str(error), VERIFICATION_FAILED) from error
        seconds = time.monotonic() - started_s
    appended = done.after - done.before
    answer = {**asdict(done), "appended": appended, "seconds": seconds}
    _say(answer, as_json, f"imported up to block {done.after}: {_speed(appended, seconds)}; {done.known} known before")


@click.command("prune", epilog=examples("bflnode chain prune --keep-rounds 10 --dry-run", "bflnode chain prune"))
@click.option("--keep-rounds", type=click.IntRange(1), help="Settled rounds to keep; default: storage.keep_rounds.")
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@local_options
def chain_prune(keep_rounds: int | None, dry_run: bool, home: "Home", as_json: bool) -> None:
    """Remove the models and journal entries of old learning rounds from a stopped node.

    The chain itself stays whole: blocks, commits and state. What the running round, the last one, late joiners and
    pins need stays too. A running node does the same by itself after each round, by storage.keep_rounds. What has gone
    can't be executed again: `chain verify --reexecute` says from which round on it could.
    """
    from bflnode.node.configuration import load_configuration
    from bflnode.node.journal import Journal
    from bflnode.node.pruning import Pruner
    from bflnode.node.stored_chain import open_store, stopped
    from bflnode.storage.blob_store import BlobStore

    with stopped(home), open_store(home) as store:
        rounds = load_configuration(home).storage.keep_rounds if keep_rounds is None else keep_rounds
        pruner = Pruner(store, BlobStore(home.blobs), Journal(home.rounds), rounds)
        pruned = pruner.prune(is_dry_run=dry_run)
    answer = {
        "is_dry_run": dry_run,
        "keep_rounds": rounds,
        "models": [blob.id.hex() for blob in pruned.blobs],
        "size_bytes": pruned.size_bytes,
        "journal_entries": pruned.entries,
        "kept_from": pruned.kept_from,
    }
    verb = "would remove" if dry_run else "removed"
    text = (
        f"{verb} {len(pruned.blobs)} models and sample files, {size_text(pruned.size_bytes)}, and {pruned.entries} "
        "journal entries"
    )
    _say(answer, as_json, text if rounds else "nothing to remove: storage.keep_rounds is 0, which keeps everything")


@click.command("rollback", epilog=examples("bflnode chain rollback", "bflnode chain rollback --to 1200 --yes --json"))
@click.option("--to", "height", type=click.IntRange(0), help="The new tip; default: one block less.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@local_options
def chain_rollback(height: int | None, yes: bool, home: "Home", as_json: bool) -> None:
    """Take the last blocks off a stopped node, for a node whose state is broken by a bug. Read this before.

    Blocks are final: this undoes nothing in the network, and the node gets the same blocks back from its peers. It only
    helps where this node computed something wrong and a corrected version computes it right. The state is computed
    again from the genesis; with --to at the present tip that is all that happens.

    Danger: a chain that more than a third of the stake forgets at once stands still, or worse, if the signer's log is
    lost with it. So never do it on several validators at a time, never delete data/signer.wal, and make a backup first
    (`bflnode chain export`). The signer's log isn't touched: the node doesn't vote until it is beyond what it signed.
    """
    from bflnode.node.stored_chain import ReplayFaultError, open_store, replay, stopped

    with stopped(home), open_store(home, is_state_checked=False) as store:
        tip = store.tip().height
        target = max(0, tip - 1) if height is None else height
        if target > tip:
            raise CommandError(f"the chain here ends with block {tip}: --to {target} is beyond it")
        if not yes:
            _confirm(
                f"Take blocks {target + 1} to {tip} off this chain?" if target < tip else "Compute the state again?"
            )
        started_s = time.monotonic()
        with _progress("executing", 1, target) as progress:
            try:
                state = replay(store, target, progress)
            except ReplayFaultError as error:
                raise CommandError(f"nothing was changed: {error}", VERIFICATION_FAILED) from error
        store.rewind(target, state)
        seconds = time.monotonic() - started_s
        answer = {"before": tip, "after": target, "state_root": store.tip().state_root.hex(), "seconds": seconds}
    _say(
        answer,
        as_json,
        f"the chain ends with block {target} now, {tip - target} less, in {seconds:.1f} s. The node gets the blocks "
        "back from its peers, and votes again beyond what it has signed",
    )


def _confirm(question: str) -> None:
    require_terminal("give --yes")
    click.confirm(question, abort=True, err=True)


@click.command("check", epilog=examples("bflnode chain check", "bflnode chain check --models --json"))
@click.option("--models", is_flag=True, help="Also read all models; changed ones are moved aside.")
@local_options
def chain_check(models: bool, home: "Home", as_json: bool) -> None:
    """Check what a stopped node has on its disk: checksums, no height missing, links between blocks, indexes, state.

    Nothing is executed, so this is quick; it finds damage, not deceit. `chain verify` finds both. A node checks
    checksums, heights, tip and state whenever it starts. Exit code 4 comes with the first fault.
    """
    from bflnode.node.stored_chain import open_store, stopped
    from bflnode.storage.blob_store import BlobStore
    from bflnode.storage.chain_check import check_links
    from bflnode.storage.errors import CorruptBlobError, CorruptStore

    started_s = time.monotonic()
    corrupt: list[str] = []
    with stopped(home):
        try:
            with open_store(home) as store:
                store.check()
                tip, lowest = store.tip().height, store.base + 1
                with _progress("checking", lowest, tip) as progress:
                    for height in check_links(store):
                        progress(height)
        except CorruptStore as error:
            raise CommandError(str(error), VERIFICATION_FAILED) from error
        blobs = BlobStore(home.blobs)
        stored = blobs.list()
        for blob in stored if models else ():
            try:
                blobs.manifest(blob)
            except CorruptBlobError:
                corrupt.append(blob.hex())
    seconds = time.monotonic() - started_s
    answer = {
        "height": tip,
        "base": lowest - 1,
        "models": len(stored),
        "models_checked": models,
        "corrupt_models": corrupt,
        "seconds": seconds,
    }
    emit(answer, as_json, _render_check)
    if corrupt:
        aside = home.blobs / "corrupt"
        message = f"{len(corrupt)} models had changed on disk and are in {aside} now: a running node fetches them again"
        raise CommandError(message, VERIFICATION_FAILED)


def _render_check(answer: dict[str, Any]) -> None:
    models = f"{answer['models']}" + ("" if answer["models_checked"] else ", not read (--models)")
    facts(
        [
            ("blocks", f"{answer['base'] + 1} to {answer['height']}, all there and linked"),
            ("models", models),
            ("took", f"{answer['seconds']:.1f} s"),
        ]
    )
