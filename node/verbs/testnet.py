"""The verbs of a whole network on this machine, `bflnode testnet …`: options, and how answers look."""

import functools
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from .options import VERIFICATION_FAILED, CommandError, FiniteRange, examples, json_option
from .output import emit, percent, table

if TYPE_CHECKING:
    from bflnode.node.testnets.homes import Testnet, TestnetOptions
    from bflnode.node.testnets.processes import NodeStatus

Function = TypeVar("Function", bound=Callable[..., Any])

DATASETS = ("digits", "fashion-mnist", "mnist", "cifar10", "cifar100", "svhn", "imagefolder", "npz")

MAX_NODES = 64
"""Processes of one machine: each takes some 100 MiB of its own."""

MICRO = 10**6

MILLE = 1000


@click.group(epilog=examples("bflnode testnet run", "bflnode testnet init -v 4 -o net", "bflnode testnet up net"))
def testnet() -> None:
    """Make and run a whole network of real nodes on this machine."""


def _options(function: Function) -> Function:
    """What a testnet can be asked for, given to the verb as `options`."""

    @functools.wraps(function)
    def with_options(*arguments: Any, **values: Any) -> Any:
        from bflnode.node.testnets.homes import TestnetOptions

        chosen = {name: values.pop(name) for name in _OPTION_NAMES}
        learning_rate_micro = round(chosen.pop("learning_rate") * MICRO)
        step, momentum, shared = (chosen.pop(name) for name in ("server_step", "momentum", "shared"))
        path = chosen.pop("dataset_path")
        dataset_path = "" if path is None else str(path.expanduser().absolute())
        options = TestnetOptions(
            hostile_permille=round(chosen.pop("hostile") * MILLE),
            clip_permille=round(chosen.pop("clip") * MILLE),
            step_permille=None if step is None else round(step * MILLE),
            momentum_permille=None if momentum is None else round(momentum * MILLE),
            shared_permille=None if shared is None else round(shared * MILLE),
            **chosen,
            dataset_path=dataset_path,
            learning_rate_micro=learning_rate_micro,
        )
        return function(*arguments, options=options, **values)

    wrapped: Any = with_options
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]  # the same callable, with click's parameters attached


_OPTIONS = (
    click.option("-v", "--validators", type=click.IntRange(1, MAX_NODES), default=5, show_default=True, help="Nodes."),
    click.option("--rounds", type=click.IntRange(1, 10_000), default=5, show_default=True, help="Learning rounds."),
    click.option("--dataset", type=click.Choice(DATASETS), default="digits", show_default=True, help="Kind of data."),
    click.option("--data", "dataset_path", type=click.Path(exists=True, path_type=Path), help="Where the data is."),
    click.option(
        "--alpha",
        type=FiniteRange(min=0),
        default=0.5,
        show_default=True,
        help="How unevenly labels are spread (Dirichlet): smaller is more uneven, 0 spreads them evenly.",
    ),
    click.option("--clusters", type=click.IntRange(1, MAX_NODES), default=2, show_default=True, help="Clusters."),
    click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=1, show_default=True, help="Of data and model."),
    click.option("--architecture", default="", metavar="ID", help="Model, as mlp/1x8x8/10; default: by the data."),
    click.option("--samples", type=click.IntRange(min=0), default=0, help="Training samples in all; default: all."),
    click.option(
        "--min-clients",
        type=click.IntRange(0, MAX_NODES),
        default=0,
        help="Clients without which a round is void; default: more than two thirds of the nodes.",
    ),
    click.option("--epochs", type=click.IntRange(1, 1000), default=5, show_default=True, help="Local epochs a round."),
    click.option("--batch-size", type=click.IntRange(1, 65_536), default=64, show_default=True, help="Of training."),
    click.option(
        "--learning-rate",
        type=FiniteRange(min=1 / MICRO, max=1000),
        default=0.001,
        show_default=True,
        help="Of training.",
    ),
    click.option(
        "--probe-mode",
        type=click.Choice(["public", "aggregator"]),
        default="public",
        show_default=True,
        help="Samples that models are compared on: drawn from a public set, or the aggregator's own; both for "
        "--similarity prototypes.",
    ),
    click.option(
        "--weighting",
        type=click.Choice(["uniform", "samples"]),
        default="uniform",
        show_default=True,
        help="Weights of models in a cluster's mean.",
    ),
    click.option(
        "--rule",
        type=click.Choice(["paa", "prior-rows"]),
        default="prior-rows",
        show_default=True,
        help="What becomes of models: one for each cluster (the paper's), or one for each cluster with a part of "
        "everybody's and rows by who holds their class.",
    ),
    click.option(
        "--combination",
        type=click.Choice(["mean", "median", "trimmed-mean", "krum", "multi-krum", "norm-clipping"]),
        default="mean",
        show_default=True,
        help="How one model is made of several.",
    ),
    click.option(
        "--hostile",
        type=FiniteRange(0, 0.499),
        default=0.2,
        show_default=True,
        help="Share of hostile models that trimming and Krum count on.",
    ),
    click.option(
        "--clip",
        type=FiniteRange(0.001, 1000),
        default=1.0,
        show_default=True,
        help="Longest step under norm clipping, in median steps.",
    ),
    click.option(
        "--server-step",
        type=FiniteRange(0.001, 10),
        help="How far outputs go towards the combination; default: 1.25 under prior-rows, 1 under paa.",
    ),
    click.option(
        "--momentum",
        type=FiniteRange(0, 1),
        help="How far clients look ahead before they train; default: 0.7 under prior-rows, 0 under paa.",
    ),
    click.option(
        "--shared",
        type=FiniteRange(0, 1),
        help="Part of everybody's model in each cluster's, under prior-rows; more where clusters compared by updates "
        "hardly differ; 1 is one model for all; default: 0.3, but 1 with any combination but the mean, and under "
        "paa.",
    ),
    click.option(
        "--similarity",
        type=click.Choice(["prototypes", "updates"]),
        help="What clients are compared by: what their models make of samples, or what they learned in the round; "
        "default: updates under prior-rows, prototypes under paa.",
    ),
    click.option("--psi", type=click.IntRange(1, 4096), default=32, show_default=True, help="Samples of a probe."),
    click.option("--base-port", type=click.IntRange(0, 65_535), default=0, help="First port; default: free ones."),
    click.option("--control/--no-control", default=True, help="Also train each node's model on its own data alone."),
)

_OPTION_NAMES = (
    "validators", "rounds", "dataset", "dataset_path", "alpha", "clusters", "seed", "architecture", "samples",
    "min_clients", "epochs", "batch_size", "learning_rate", "probe_mode", "weighting", "rule", "combination", "hostile",
    "clip", "server_step", "momentum", "shared", "similarity", "psi", "base_port", "control",
)  # fmt: skip


@contextmanager
def _complaining() -> Iterator[None]:
    """Turn what can go wrong with a testnet into one line, after the end of the log in question."""
    from bflnode.fl.architectures import UnknownArchitecture
    from bflnode.fl.samples import DatasetError
    from bflnode.node.testnets.processes import TestnetError
    from bflnode.node.testnets.report import ReportError
    from bflnode.node.workers.launcher import LauncherError

    try:
        yield
    except TestnetError as error:
        for line in error.log:
            click.echo(f"  | {line}", err=True)
        raise CommandError(str(error)) from error
    except (DatasetError, UnknownArchitecture, LauncherError, ReportError) as error:
        raise CommandError(str(error)) from error


def _load(directory: Path) -> "Testnet":
    from bflnode.node.testnets.homes import load_testnet

    return load_testnet(directory)


_directory = click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
_name = click.argument("name", required=False)


def _names(name: str | None) -> tuple[str, ...]:
    return () if name is None else (name,)


@testnet.command(epilog=examples("bflnode testnet init -v 4 -o net", "bflnode testnet init -v 20 --alpha 0.1 -o net"))
@_options
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="New folder for everything.")
def init(options: "TestnetOptions", output: Path) -> None:
    """Make homes with one genesis, and data spread over them."""
    from bflnode.node.aggregation import rule_text
    from bflnode.node.testnets.homes import make_testnet

    with _complaining():
        made = make_testnet(output, options)
    genesis = made.homes[0].load_genesis()
    task = genesis.tasks[0].specification
    click.echo(f"made {output}: {len(made.nodes)} nodes ({made.nodes[0]} to {made.nodes[-1]}), chain {genesis.name}")
    click.echo(
        f"  task {task.name}: {task.rounds} rounds, {task.architecture}, {rule_text(task)}, {task.clusters} clusters"
    )
    click.echo(f"  chain id {genesis.chain_id.hex()}")
    click.echo(f"  {output / 'admission.key'} admits further nodes, whose data is in {output / 'spare'}")
    click.echo(f"next: bflnode testnet up {output}")


@testnet.command(epilog=examples("bflnode testnet up net", "bflnode testnet up net node2"))
@_directory
@_name
def up(directory: Path, name: str | None) -> None:
    """Start all nodes, or one, in the background; return when they answer."""
    from bflnode.node.testnets import processes

    with _complaining():
        found = processes.up(_load(directory), _names(name))
    table(("node", "pid", "rpc", "height"), ((node.name, node.pid, node.rpc, _height(node)) for node in found))
    click.echo(f"next: bflnode testnet status {directory}")


def _height(node: "NodeStatus") -> object:
    return None if node.status is None else node.status["height"]


@testnet.command(epilog=examples("bflnode testnet down net", "bflnode testnet down net node2"))
@_directory
@_name
def down(directory: Path, name: str | None) -> None:
    """Stop all nodes, or one; does nothing when they are stopped."""
    from bflnode.node.testnets import processes

    with _complaining():
        loaded = _load(directory)
        killed = processes.down(loaded, _names(name))
    for node in killed:
        click.echo(f"{node} ignored SIGTERM and was killed", err=True)
    click.echo(f"{name or f'{len(loaded.nodes)} nodes'} stopped")


@testnet.command(epilog=examples("bflnode testnet status net", "bflnode testnet status net --json"))
@_directory
@_name
@json_option
def status(directory: Path, name: str | None, as_json: bool) -> None:
    """Every node at a glance, running or stopped."""
    from bflnode.node.testnets import processes

    with _complaining():
        found = processes.statuses(_load(directory), _names(name))
    emit([node.to_json() for node in found], as_json, _show_statuses)


def _show_statuses(nodes: list[dict[str, Any]]) -> None:
    headings = ("node", "pid", "rpc", "height", "head", "round", "phase", "peers", "post", "balance")
    table(headings, (_status_row(node) for node in nodes))
    for node in nodes:
        if node["error"]:
            click.echo(f"{node['name']}: {node['error']}", err=True)


def _status_row(node: dict[str, Any]) -> tuple[object, ...]:
    from bflnode.node.amounts import plain_tokens

    known = (node["name"], node["pid"] or "down", node["rpc"])
    if "height" not in node:
        return (*known, *["-"] * 7)
    round_ = f"{node['settled_rounds']} settled" if node["round"] is None else f"{node['round']}/{node['rounds']}"
    accuracy = percent((node["accuracy"] or {}).get("post_accuracy"))
    place = (node["height"], node["head"][:12], round_, node["phase"], node["peers"])
    return (*known, *place, accuracy, plain_tokens(node["balance"]))


@testnet.command(epilog=examples("bflnode testnet logs net -n 5", "bflnode testnet logs net node2 -f"))
@_directory
@_name
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines until Ctrl-C.")
@click.option(
    "-n", "--lines", type=click.IntRange(min=0), default=20, show_default=True, help="Last lines of each log."
)
def logs(directory: Path, name: str | None, follow: bool, lines: int) -> None:
    """The ends of the nodes' logs."""
    from bflnode.node.testnets import processes

    loaded = _load(directory)
    homes = [loaded.home(name)] if name is not None else list(loaded.homes)

    def show(node: str, line: str) -> None:
        click.echo(line if len(homes) == 1 else f"{node} | {line}")

    if follow:
        for node, line in processes.follow_logs(homes, lines):
            show(node, line)
    for home in homes:
        for line in processes.log_tail(home, lines):
            show(home.root.name, line)


@testnet.command(epilog=examples("bflnode testnet add net"))
@_directory
def add(directory: Path) -> None:
    """Make and admit one more node; start it if the others run."""
    from bflnode.node.testnets import processes
    from bflnode.node.testnets.homes import add_node

    with _complaining():
        loaded = _load(directory)
        is_up = processes.is_up(loaded)
        grown, home = add_node(loaded)
        name = home.root.name
        click.echo(f"made {home.root}: admitted with 5 tokens, its data in {home.shard}")
        if is_up:
            (node,) = processes.up(grown, (name,))
            click.echo(f"{name} runs: process {node.pid}, RPC {node.rpc}")
    if not is_up:
        click.echo(f"next: bflnode testnet up {directory} {name}")


@testnet.command(
    epilog=examples(
        "bflnode testnet run",
        "bflnode testnet run -v 10 --rounds 20 --alpha 0.1 --clusters 4 --keep net",
        "bflnode testnet run --dataset fashion-mnist --samples 3000 --json",
    )
)
@_options
@click.option("--keep", type=click.Path(path_type=Path), help="New folder for everything; default: a temporary one.")
@json_option
def run(options: "TestnetOptions", keep: Path | None, as_json: bool) -> None:
    """Make a network, run all learning rounds, stop it, check everything again, report.

    Exit code 0 if every check holds, 4 if one doesn't. Ctrl-C stops all nodes.
    """
    from bflnode.node.testnets.run import run_testnet

    from .progress import open_view
    from .report_text import print_report

    with ExitStack() as stack:
        stack.enter_context(_complaining())
        for number in (signal.SIGTERM, signal.SIGHUP):  # a supervisor, a closed terminal: as clean as Ctrl-C
            signal.signal(number, _interrupt)
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bflnet-")))
        view = stack.enter_context(open_view())
        report = run_testnet(folder.absolute(), options, view)
    emit(report, as_json, print_report)
    if keep is not None and not as_json:
        click.echo(f"kept in {keep}: look around with `bflnode rounds --home {keep / 'node0'}`")
    _exit_by(report)


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


@testnet.command(epilog=examples("bflnode testnet report net", "bflnode testnet report net --json"))
@_directory
@json_option
def report(directory: Path, as_json: bool) -> None:
    """Check a stopped network again from its genesis, and report.

    Exit code 0 if every check holds, 4 if one doesn't.
    """
    from bflnode.node.testnets.report import make_report

    from .report_text import print_report

    with _complaining():
        made = make_report(_load(directory)).to_json()
    emit(made, as_json, print_report)
    _exit_by(made)


def _exit_by(report: dict[str, Any]) -> None:
    if not report["passed"]:
        click.get_current_context().exit(VERIFICATION_FAILED)
