"""The report of experiments: Markdown with tables over seeds, and plots.

    report.md, report.json     tables: last round, mean ± standard deviation over seeds
    plots/…png                 accuracy over rounds; where there is a ledger, what BFLN's figure 2 shows

matplotlib is imported when plots are drawn; it is an extra.
"""

import json
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from bflnode.consensus.types import TOKEN
from bflnode.storage.durable import write_durably
from bflnode.storage.errors import from_os_error

from .file import Experiment, ExperimentError
from .results import METRICS, RoundResult, Spread, last_rounds, read_rounds, read_table, spread
from .store import ExperimentFolder, describe

TITLES = {
    "received": "RECEIVED: accuracy on a client's own test data of what it receives, before it trains",
    "post": "POST: accuracy on a client's own test data after local training, before aggregation",
    "global": "GLOBAL: accuracy on the global test set, mean over clients",
}

MEBIBYTE = 2**20

SIZE_INCHES = (7.0, 4.5)

DOTS_PER_INCH = 120


def write_report(folders: Sequence[ExperimentFolder], output: Path, with_plots: bool) -> dict[str, Any]:
    """Write the report of some experiments into a folder.

    Returns:
        Paths of what was written, and the tables as numbers.

    Raises:
        ExperimentError: no learning round has ended, or plots are wanted without matplotlib.
        StorageError: the disk refuses.
    """
    if with_plots:
        _pyplot()
    names = [folder.experiment.name for folder in folders]
    for name in names:
        if names.count(name) > 1:
            raise ExperimentError(f"two experiments are called {name}: report them into folders of their own with -o")
    sections, plots, numbers = [], [], []
    for folder in folders:
        results = read_rounds(folder)
        if not results:
            raise ExperimentError(f"{folder.path}: no learning round has ended yet: nothing to report")
        name = folder.experiment.name
        try:
            output.mkdir(parents=True, exist_ok=True)
            drawn = _draw(folder, results, output / "plots" / name) if with_plots else []
        except OSError as error:
            raise from_os_error(output, "writing a report", error) from error
        plots += drawn
        sections.append(_section(folder, results, [path.relative_to(output) for path in drawn]))
        numbers.append(
            {"name": name, "directory": str(folder.path), "last_round": _numbers(folder.experiment, results)}
        )
    markdown = output / "report.md"
    answer = {"markdown": str(markdown), "plots": [str(path) for path in plots], "experiments": numbers}
    try:
        write_durably(markdown, "\n\n".join(sections).encode() + b"\n")
        write_durably(output / "report.json", (json.dumps(answer, indent=2) + "\n").encode())
    except OSError as error:
        raise from_os_error(output, "writing a report", error) from error
    return answer


def _section(folder: ExperimentFolder, results: Sequence[RoundResult], plots: Iterable[Path]) -> str:
    experiment = folder.experiment
    last = last_rounds(results, experiment.rounds)
    described = describe(folder)
    lines = [
        f"# {experiment.name}",
        "",
        _sentence(folder, described),
        "",
        "Mean ± standard deviation over seeds (single values have none) of the last round. "
        "Each value of a run is a mean over its honest clients.",
    ]
    for metric in METRICS:
        lines += ["", f"## {TITLES[metric]}", "", *_accuracies(experiment, last, metric)]
    lines += ["", "## What it costs", "", *_costs(experiment, results)]
    rewards = _rewards(folder)
    if rewards:
        lines += ["", "## Payouts", "", *rewards]
    lines += ["", "## Heads", "", "Same file, same seed, same machine: the same heads.", ""]
    lines += ["| run | round | head |", "|---|---|---|"]
    lines += [
        f"| {run['name']} | {run['round']} of {run['rounds']} | `{run['head'] or '-'}` |" for run in described["runs"]
    ]
    for path in plots:
        lines += ["", f"![{path.stem}]({path.as_posix()})"]
    return "\n".join(lines)


def _sentence(folder: ExperimentFolder, described: dict[str, Any]) -> str:
    experiment, metadata = folder.experiment, folder.metadata()
    sampled = f", {experiment.sample} in a round" if experiment.sample else ""
    used = ", ".join(f"{name} {number}" for name, number in metadata.get("packages", {}).items())
    parts = [
        f"Data {experiment.data.kind}, {experiment.clients} clients{sampled}, {experiment.rounds} rounds of "
        f"{experiment.training.epochs} local epochs ({experiment.training.optimiser}, learning rate "
        f"{experiment.training.learning_rate:g}, batch {experiment.training.batch_size}), "
        f"seeds {', '.join(map(str, experiment.seeds))}."
    ]
    if experiment.shift.name != "none" or experiment.shift.test_prior != "same":
        shift = experiment.shift
        parts.append(f"Feature shift {shift.name} in {shift.groups} groups, test prior {shift.test_prior}.")
    if experiment.attack is not None:
        attack = experiment.attack
        parts.append(f"{attack.share:.0%} of the clients do {attack.name}, strength {attack.strength:g}.")
    parts.append(f"{described['finished']} of {len(described['runs'])} runs are done. Made with {used}.")
    return " ".join(parts)


def _accuracies(experiment: Experiment, last: dict[tuple[str, float], dict[str, Spread]], metric: str) -> list[str]:
    alphas = experiment.alphas
    lines = [f"| method | {' | '.join(_alpha(alpha) for alpha in alphas)} |", f"|---|{'---|' * len(alphas)}"]
    for entry in experiment.methods:
        cells = (last.get((entry.title, alpha), {}).get(metric) for alpha in alphas)
        lines.append(f"| {entry.title} | {' | '.join(_shown(cell) for cell in cells)} |")
    return lines


def _costs(experiment: Experiment, results: Sequence[RoundResult]) -> list[str]:
    lines = [
        "| method | MiB up a round | MiB down a round | seconds a round | of these training |",
        "|---|---|---|---|---|",
    ]
    for entry in experiment.methods:
        own = [result.values for result in results if result.method == entry.title]
        if own:
            means = {name: fmean(values[name] or 0.0 for values in own) for name in own[0]}
            lines.append(
                f"| {entry.title} | {means['bytes_up'] / MEBIBYTE:.3f} | {means['bytes_down'] / MEBIBYTE:.3f} | "
                f"{means['seconds']:.2f} | {means['training_seconds']:.2f} |"
            )
    return [*lines, "", "Training is summed over clients; with several workers it may exceed the round."]


def _rewards(folder: ExperimentFolder) -> list[str]:
    """Totals of clients' rewards, for each run on a ledger: least, mean and most, and what aggregating earned."""
    lines = ["| run | least tokens of a client | mean | most | to aggregators |", "|---|---|---|---|---|"]
    for (method, alpha, seed), clients in _payouts(folder).items():
        nets = [sum(rounds.values()) / TOKEN for rounds in clients.net.values()]
        lines.append(
            f"| {method}-alpha{alpha}-seed{seed} | {min(nets):.3f} | {fmean(nets):.3f} | {max(nets):.3f} | "
            f"{clients.aggregators / TOKEN:.3f} |"
        )
    return lines if len(lines) > 2 else []


class _Payouts:
    """What a run's ledger paid: by client and round."""

    def __init__(self) -> None:
        self.net: dict[int, dict[int, int]] = defaultdict(dict)
        self.sizes: dict[int, dict[int, int]] = defaultdict(dict)
        self.aggregators = 0


def _payouts(folder: ExperimentFolder) -> dict[tuple[str, str, str], _Payouts]:
    found: dict[tuple[str, str, str], _Payouts] = defaultdict(_Payouts)

    def add(row: dict[str, str]) -> None:
        run = found[row["method"], row["alpha"], row["seed"]]
        run.aggregators += int(row["aggregator_income"])
        if row["exclusion"] != "no_client":
            client, number = int(row["client"]), int(row["round"])
            run.net[client][number] = int(row["net"])
            run.sizes[client][number] = int(row["cluster_size"])

    deque(read_table(folder, "payouts.csv", add), maxlen=0)
    return found


def _numbers(experiment: Experiment, results: Sequence[RoundResult]) -> list[dict[str, Any]]:
    return [
        {
            "method": method,
            "alpha": alpha,
            **{
                name: {"mean": found.mean, "deviation": found.deviation, "seeds": found.count}
                for name, found in metrics.items()
            },
        }
        for (method, alpha), metrics in last_rounds(results, experiment.rounds).items()
    ]


def _draw(folder: ExperimentFolder, results: Sequence[RoundResult], plots: Path) -> list[Path]:
    plots.mkdir(parents=True, exist_ok=True)
    drawn = []
    for alpha in folder.experiment.alphas:
        for metric in METRICS:
            path = plots / f"{metric}-alpha{alpha:g}.png"
            if _draw_accuracy(folder.experiment, results, (alpha, metric), path):
                drawn.append(path)
    for (method, alpha_text, seed), payouts in _payouts(folder).items():
        path = plots / f"rewards-{method}-alpha{alpha_text}-seed{seed}.png"
        _draw_rewards(payouts, f"{method}, alpha {alpha_text}, seed {seed}", path)
        drawn.append(path)
    return drawn


def _draw_accuracy(experiment: Experiment, results: Sequence[RoundResult], what: tuple[float, str], path: Path) -> bool:
    """A line a method: the mean over seeds, with a band of one standard deviation; False if nothing was measured."""
    pyplot = _pyplot()
    alpha, metric = what
    figure, axes = pyplot.subplots(figsize=SIZE_INCHES)
    is_empty = True
    for entry in experiment.methods:
        by_round: dict[int, list[float]] = defaultdict(list)
        for result in results:
            value = result.values[metric]
            if (result.method, result.alpha) == (entry.title, alpha) and value is not None:
                by_round[result.round].append(value)
        rounds = sorted(by_round)
        spreads = [spread(by_round[number]) for number in rounds]
        if rounds:
            is_empty = False
            (line,) = axes.plot(rounds, [each.mean for each in spreads], marker=".", label=entry.title)
            low = [each.mean - (each.deviation or 0.0) for each in spreads]
            high = [each.mean + (each.deviation or 0.0) for each in spreads]
            axes.fill_between(rounds, low, high, alpha=0.15, color=line.get_color(), linewidth=0)
    if not is_empty:
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel="learning round", ylabel=metric.upper(), ylim=(0, 1), title=_alpha(alpha))
        axes.legend(fontsize="small")
        figure.savefig(path, dpi=DOTS_PER_INCH, bbox_inches="tight")
    pyplot.close(figure)
    return not is_empty


def _draw_rewards(payouts: _Payouts, title: str, path: Path) -> None:
    """BFLN's figure 2: what each client has earned, round by round, and the sum of the sizes of its clusters."""
    pyplot = _pyplot()
    figure, (trend, sums) = pyplot.subplots(1, 2, figsize=(2 * SIZE_INCHES[0], SIZE_INCHES[1]))
    for client, nets in sorted(payouts.net.items()):
        rounds = sorted(nets)
        earned = [sum(nets[number] for number in rounds[: index + 1]) / TOKEN for index in range(len(rounds))]
        trend.plot(rounds, earned, label=str(client), linewidth=1)
    trend.xaxis.get_major_locator().set_params(integer=True)
    trend.set(xlabel="learning round", ylabel="tokens earned", title=f"Reward ({title})")
    clients = sorted(payouts.sizes)
    sums.bar(clients, [sum(payouts.sizes[client].values()) for client in clients])
    sums.set(xlabel="client", ylabel="sum of cluster sizes", title=f"Cluster ({title})")
    if len(clients) <= 20:
        trend.legend(fontsize="x-small", ncols=2, title="client")
    figure.savefig(path, dpi=DOTS_PER_INCH, bbox_inches="tight")
    pyplot.close(figure)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise ExperimentError(
            "plots need matplotlib: pip install 'bflnode[experiments]', or report with --no-plots"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _alpha(alpha: float) -> str:
    return f"alpha {alpha:g}" if alpha else "even (IID)"


def _shown(found: Spread | None) -> str:
    if found is None:
        return "-"
    return f"{found.mean:.3f}" if found.deviation is None else f"{found.mean:.3f} ± {found.deviation:.3f}"
