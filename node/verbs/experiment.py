"""The verbs of experiments, `bflnode experiment …`: options, progress, and how answers look."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .options import INTERRUPTED, CommandError, examples, json_option
from .output import duration, emit, percent, short, table, terminal_width

if TYPE_CHECKING:
    from bflnode.node.experiments.run import Progress
    from bflnode.node.experiments.store import ExperimentFolder

Function = TypeVar("Function", bound=Callable[..., Any])

MAX_JOBS = 1024
"""Workers: a Ray cluster may have many cores."""


@click.group(
    epilog=examples(
        "bflnode experiment run digits.toml",
        "bflnode experiment resume digits --jobs 4",
        "bflnode experiment report digits",
    )
)
def experiment() -> None:
    """Compare methods of federated learning: many clients in one process, with the network's own code."""


def _worker_options(function: Function) -> Function:
    jobs = click.option(
        "--jobs",
        type=click.IntRange(1, MAX_JOBS),
        default=1,
        show_default=True,
        help="Clients that train at the same time.",
    )
    ray = click.option(
        "--ray",
        "ray_address",
        metavar="ADDRESS",
        help="Train on a Ray cluster: its address, `auto`, or `local` for one on this machine.",
    )
    return jobs(ray(json_option(function)))


_directory = click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))


@experiment.command(
    epilog=examples(
        "bflnode experiment run digits.toml", "bflnode experiment run digits.toml -o results/digits --jobs 2"
    )
)
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("-o", "directory", metavar="DIR", type=click.Path(path_type=Path), help="Results; default: the name.")
@_worker_options
def run(file: Path, directory: Path | None, jobs: int, ray_address: str | None, as_json: bool) -> None:
    """Run the experiment that FILE describes. Results don't depend on --jobs and --ray."""
    from bflnode.node.experiments.file import read_experiment
    from bflnode.node.experiments.run import checked_methods
    from bflnode.node.experiments.store import make_folder

    described, content = read_experiment(file)
    checked_methods(described)  # before there is a folder
    folder = make_folder(directory or Path(described.name), file, described, content)
    _play(folder, jobs, ray_address, as_json)


@experiment.command(epilog=examples("bflnode experiment resume digits", "bflnode experiment resume digits --jobs 4"))
@_directory
@_worker_options
def resume(directory: Path, jobs: int, ray_address: str | None, as_json: bool) -> None:
    """Go on with an experiment that was stopped, after its last learning round."""
    from bflnode.node.experiments.store import open_folder

    _play(open_folder(directory), jobs, ray_address, as_json)


@experiment.command("list", epilog=examples("bflnode experiment list", "bflnode experiment list results --json"))
@click.argument("directory", metavar="[DIR]", type=click.Path(path_type=Path), default=".")
@json_option
def list_experiments(directory: Path, as_json: bool) -> None:
    """Show the experiments in a folder (default: this one), or the runs of one experiment."""
    from bflnode.node.experiments.file import ExperimentError
    from bflnode.node.experiments.store import describe, describe_all, open_folder

    if not directory.is_dir():
        raise ExperimentError(f"{directory} is no folder: give one that has experiments")
    if (directory / "experiment.toml").exists():
        emit(describe(open_folder(directory)), as_json, _show_runs)
        return
    emit(describe_all(directory), as_json, _show_experiments)


@experiment.command(
    epilog=examples("bflnode experiment report digits", "bflnode experiment report first second -o report")
)
@click.argument("directories", metavar="DIR...", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "-o", "output", metavar="DIR", type=click.Path(path_type=Path), help="Folder of the report; default: the first DIR."
)
@click.option("--plots/--no-plots", default=True, help="Draw plots; needs matplotlib (bflnode[experiments]).")
@json_option
def report(directories: tuple[Path, ...], output: Path | None, plots: bool, as_json: bool) -> None:
    """Write report.md: tables over seeds and plots, of one experiment or of several."""
    from bflnode.node.experiments.report import write_report
    from bflnode.node.experiments.store import open_folder

    answer = write_report([open_folder(path) for path in directories], output or directories[0], plots)
    emit(answer, as_json, lambda found: click.echo(found["markdown"]))


def _play(folder: "ExperimentFolder", jobs: int, ray_address: str | None, as_json: bool) -> None:
    from bflnode.node.experiments.run import Workers, run_experiment
    from bflnode.node.experiments.store import describe

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # batch systems send it
    try:
        run_experiment(folder, Workers(jobs, ray_address), _show_progress)
    except KeyboardInterrupt as error:
        raise CommandError(
            f"stopped: go on with `bflnode experiment resume {folder.path}`", exit_code=INTERRUPTED
        ) from error
    finally:
        signal.signal(signal.SIGTERM, before)
    emit(describe(folder), as_json, _show_runs)
    if not as_json:
        click.echo(f"tables are in {folder.path}; `bflnode experiment report {folder.path}` makes a report")


def _show_progress(progress: "Progress") -> None:
    """A line a round on standard error, which is overwritten where it is a terminal."""
    left = "" if progress.seconds_left is None else f", {duration(round(progress.seconds_left * 1000))} left"
    line = (
        f"{progress.run}: round {progress.round} of {progress.rounds}, received {percent(progress.received)}, "
        f"post {percent(progress.post)}, {progress.seconds:.1f} s{left}"
    )
    width = terminal_width(sys.stderr)
    if width is None:
        click.echo(line, err=True)
        return
    is_last = progress.round == progress.rounds
    shown = line if len(line) < width else f"{line[: width - 2]}…"  # a line that goes on below isn't overwritten whole
    click.echo(f"\r\x1b[K{shown}", err=True, nl=is_last)


def _show_runs(answer: Any) -> None:
    click.echo(f"{answer['name']}: {answer['finished']} of {len(answer['runs'])} runs done, {answer['state']}")
    table(
        ("run", "round", "time", "head id"),
        (
            (
                run["name"],
                f"{run['round']} of {run['rounds']}",
                duration(round(run["seconds"] * 1000)),
                short(run["head"]),
            )
            for run in answer["runs"]
        ),
    )


def _show_experiments(answers: Any) -> None:
    table(
        ("experiment", "folder", "state", "runs", "rounds"),
        (
            (
                answer["name"],
                answer["directory"],
                answer["state"],
                f"{answer['finished']} of {len(answer['runs'])}",
                f"{sum(run['round'] for run in answer['runs'])} of {sum(run['rounds'] for run in answer['runs'])}",
            )
            for answer in answers
        ),
        empty="no experiments here: `bflnode experiment run FILE.toml` makes one",
    )
