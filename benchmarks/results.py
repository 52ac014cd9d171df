"""The tables and plots of docs/results.md, from the committed tables of experiments in docs/results.

    python benchmarks/results.py collect FOLDER...    copy the tables of finished experiments to docs/results
    python benchmarks/results.py write                write tables and plots anew

A table in docs/results.md stands between `<!-- KIND ARGUMENTS -->` and `<!-- end -->`:

    accuracies METRIC NAME...            methods by alpha: mean ± standard deviation over seeds, of the last round
    differences METRIC METHOD NAME...    METHOD minus each other method on the same alpha and seed, and how often above
    rates METRIC NAME...                 methods by learning rate, one experiment each: mean ± standard deviation
    losses NAME...                       mean training loss over rounds
    rewards NAME                         what clients earned, and how that goes with the sizes of their clusters
    groups NAME                          adjusted Rand index of clusters with the groups whose features differ, by round

Plots need matplotlib (`pip install 'bflnode[experiments]'`).
"""

import argparse
import csv
import json
import re
import shutil
import tomllib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import correlation, fmean, stdev
from typing import Any

from sklearn.metrics import adjusted_rand_score

DOCS = Path(__file__).parent.parent / "docs"

PAGE = DOCS / "results.md"

TABLES = DOCS / "results"

EXPERIMENTS = DOCS.parent / "examples" / "experiments" / "results"

BLOCK = re.compile(
    r"(<!-- (accuracies|differences|rates|losses|rewards|groups) ([^\n]*) -->\n)(.*?)(<!-- end -->)", re.DOTALL
)

SHIFTED_GROUPS = 4
"""Of clients whose features differ: client i is in group i modulo this (`bflnode.fl.population.Shift`)."""

TOKEN = 10**6
"""Micro-tokens."""

SIZE_INCHES = (7.0, 4.5)

Runs = Mapping[tuple[str, float], Mapping[int, Sequence[Mapping[str, str]]]]
"""Rows by round, of each seed, of each method and alpha."""


def read_runs(names: Sequence[str], folder: Path = TABLES) -> Runs:
    """The runs of some experiments together, in order of appearance."""
    runs: dict[tuple[str, float], dict[int, list[Mapping[str, str]]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        with (folder / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                runs[row["method"], float(row["alpha"])][int(row["seed"])].append(row)
    return runs


def accuracies(metric: str, *names: str) -> str:
    """Methods by alpha, the best mean of each column in bold."""
    runs = read_runs(names)
    alphas = sorted({alpha for _, alpha in runs})
    last = {
        key: [float(rows[-1][metric]) for rows in seeds.values() if rows[-1][metric]] for key, seeds in runs.items()
    }
    best = {
        alpha: max(fmean(values) for (_, own), values in last.items() if own == alpha and values) for alpha in alphas
    }
    lines = [
        f"| method | {' | '.join(alpha_title(alpha) for alpha in alphas)} | seeds |",
        "|---" * (len(alphas) + 2) + "|",
    ]
    for method in dict.fromkeys(method for method, _ in runs):
        cells = []
        for alpha in alphas:
            values = last.get((method, alpha), [])
            cell = spread(values)
            cells.append(f"**{cell}**" if values and fmean(values) == best[alpha] else cell)
        counts = {len(seeds) for (own, _), seeds in runs.items() if own == method}
        lines.append(f"| {method} | {' | '.join(cells)} | {'-'.join(map(str, sorted(counts)))} |")
    return "\n".join(lines)


def differences(metric: str, method: str, *names: str) -> str:
    """A method minus each other one, in points (hundredths), paired by alpha and seed."""
    runs = read_runs(names)
    alphas = sorted({alpha for own, alpha in runs if own == method} & {alpha for own, alpha in runs if own != method})
    lines = [
        f"| {method} minus | {' | '.join(alpha_title(alpha) for alpha in alphas)} |",
        "|---" * (len(alphas) + 1) + "|",
    ]
    for other in dict.fromkeys(own for own, _ in runs if own != method):
        cells = []
        for alpha in alphas:
            ours, theirs = runs[method, alpha], runs.get((other, alpha), {})
            pairs = [
                100 * (float(ours[seed][-1][metric]) - float(theirs[seed][-1][metric]))
                for seed in ours
                if seed in theirs and theirs[seed][-1][metric]
            ]
            wins = sum(pair > 0 for pair in pairs)
            cells.append(f"{spread(pairs, '+.1f')}, {wins} of {len(pairs)}" if pairs else "-")
        lines.append(f"| {other} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rates(metric: str, *names: str) -> str:
    """Methods by the learning rates of experiments at one alpha, the best mean of each method in bold."""
    by_rate = {learning_rate(name): read_runs([name]) for name in names}
    lines = [f"| method | {' | '.join(by_rate)} |", "|---" * (len(by_rate) + 1) + "|"]
    for key in dict.fromkeys(key for runs in by_rate.values() for key in runs):
        columns = [
            [float(rows[-1][metric]) for rows in runs[key].values()] if key in runs else [] for runs in by_rate.values()
        ]
        best = max(fmean(values) for values in columns if values)
        cells = [f"**{spread(values)}**" if values and fmean(values) == best else spread(values) for values in columns]
        lines.append(f"| {key[0]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def learning_rate(name: str) -> str:
    """Of an experiment, as its file has it; 0.001 where it has none."""
    experiment = tomllib.loads((EXPERIMENTS / f"{name}.toml").read_text(encoding="utf-8"))
    return f"{experiment.get('training', {}).get('learning_rate', 0.001):g}"


def losses(*names: str) -> str:
    """Mean loss of the last local epoch, nats, over seeds, and the largest rise from one round to the next."""
    runs = read_runs(names)
    shown = [1, 2, 3, 5, 10, 20]
    lines = [
        f"| method | {' | '.join(f'round {number}' for number in shown)} | largest rise |",
        "|---" * (len(shown) + 2) + "|",
    ]
    for (method, _), seeds in runs.items():
        by_round: dict[int, list[float]] = defaultdict(list)
        for rows in seeds.values():
            for row in rows:
                by_round[int(row["round"])].append(float(row["loss"]))
        means = {number: fmean(values) for number, values in by_round.items()}
        rise = max(means[number] - means[number - 1] for number in means if number > 1)
        cells = [f"{means[number]:.3f}" if number in means else "-" for number in shown]
        lines.append(f"| {method} | {' | '.join(cells)} | {rise:+.3f} |")
    return "\n".join(lines)


def rewards(name: str) -> str:
    """What clients earned in all, and how that goes with the sum of the sizes of their clusters."""
    lines = ["| method | least | mean | most | standard deviation | correlation with sizes |", "|---" * 6 + "|"]
    for method, clients in read_payouts(name).items():
        nets = [sum(net for net, _ in rounds) / TOKEN for rounds in clients.values()]
        sizes = [float(sum(size for _, size in rounds)) for rounds in clients.values()]
        lines.append(
            f"| {method} | {min(nets):.2f} | {fmean(nets):.2f} | {max(nets):.2f} | {stdev(nets):.2f} | "
            f"{correlation(nets, sizes):.2f} |"
        )
    return "\n".join(lines)


def read_payouts(name: str, folder: Path = TABLES) -> Mapping[str, Mapping[int, Sequence[tuple[int, int]]]]:
    """Net micro-tokens and cluster size in each round, by method and client."""
    found: dict[str, dict[int, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    with (folder / f"{name}-payouts.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["exclusion"] != "no_client":
                found[row["method"]][int(row["client"])].append((int(row["net"]), int(row["cluster_size"])))
    return found


def groups(name: str) -> str:
    """How well each method's clusters are the groups whose features differ: 1 is all, 0 is chance."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    with (TABLES / f"{name}-clusters.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            clusters = row["clusters"].split()
            truth = [client % SHIFTED_GROUPS for client in range(len(clusters))]
            found[row["method"]][int(row["round"])].append(adjusted_rand_score(truth, clusters))
    shown = [number for number in (1, 2, 3, 5, 10) if all(number in rounds for rounds in found.values())]
    lines = [f"| method | {' | '.join(f'round {number}' for number in shown)} |", "|---" * (len(shown) + 1) + "|"]
    for method, rounds in found.items():
        lines.append(f"| {method} | {' | '.join(spread(rounds[number], '.2f') for number in shown)} |")
    return "\n".join(lines)


KINDS: Mapping[str, Callable[..., str]] = {
    "accuracies": accuracies,
    "differences": differences,
    "rates": rates,
    "losses": losses,
    "rewards": rewards,
    "groups": groups,
}


def written(page: str) -> str:
    """The page with all of its tables made anew."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{KINDS[found[2]](*found[3].split())}\n\n{found[5]}", page)


def spread(values: Sequence[float], shape: str = ".3f") -> str:
    """Mean and standard deviation."""
    if not values:
        return "-"
    deviation = f" ± {stdev(values):{shape.removeprefix('+')}}" if len(values) > 1 else ""
    return f"{fmean(values):{shape}}{deviation}"


def alpha_title(alpha: float) -> str:
    """A column's title."""
    return f"alpha {alpha:g}" if alpha else "even"


def draw_accuracies(path: Path, metric: str, names: Sequence[str]) -> None:
    """A panel an alpha, a line a method."""
    from matplotlib import pyplot

    runs = read_runs(names)
    alphas = sorted({alpha for _, alpha in runs})
    methods = list(dict.fromkeys(method for method, _ in runs))
    figure, panels = pyplot.subplots(1, len(alphas), figsize=(5 * len(alphas), 4.5), squeeze=False, sharey=False)
    colours = pyplot.get_cmap("tab20")
    for alpha, axes in zip(alphas, panels[0], strict=True):
        for place, method in enumerate(methods):
            by_round: dict[int, list[float]] = defaultdict(list)
            for rows in runs.get((method, alpha), {}).values():
                for row in rows:
                    if row[metric]:
                        by_round[int(row["round"])].append(float(row[metric]))
            rounds = sorted(by_round)
            means = [fmean(by_round[number]) for number in rounds]
            width = 2.5 if method.startswith("prior-rows") else 1.0
            axes.plot(rounds, means, label=method, color=colours(place % 20), linewidth=width)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel="learning round", ylabel=metric.upper(), title=alpha_title(alpha))
    panels[0][-1].legend(fontsize="x-small", loc="lower right")
    save(figure, path)


def draw_frontier(path: Path, names: Sequence[str]) -> None:
    """A panel an alpha, a point a method: POST against GLOBAL after the last round, mean and standard deviation."""
    from matplotlib import pyplot

    runs = read_runs(names)
    alphas = sorted({alpha for _, alpha in runs})
    methods = list(dict.fromkeys(method for method, _ in runs))
    figure, panels = pyplot.subplots(1, len(alphas), figsize=(5 * len(alphas), 4.5), squeeze=False)
    colours, markers = pyplot.get_cmap("tab10"), "os^"
    for alpha, axes in zip(alphas, panels[0], strict=True):
        for place, method in enumerate(methods):
            last = [rows[-1] for rows in runs.get((method, alpha), {}).values()]
            post, general = ([float(row[metric]) for row in last if row[metric]] for metric in ("post", "global"))
            if len(post) < 2 or len(general) < 2:
                continue
            axes.errorbar(
                fmean(post),
                fmean(general),
                xerr=stdev(post),
                yerr=stdev(general),
                label=method,
                color=colours(place % 10),
                marker=markers[place // 10 % len(markers)],
                markersize=10 if method == "prior-rows" else 5,
                linewidth=0.5,
            )
        axes.set(xlabel="POST", ylabel="GLOBAL", title=alpha_title(alpha))
    panels[0][-1].legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    save(figure, path)


def draw_losses(path: Path, names: Sequence[str]) -> None:
    """A panel an experiment: loss over rounds, mean over seeds."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(names), figsize=(6 * len(names), 4), squeeze=False)
    for name, axes in zip(names, panels[0], strict=True):
        for (method, _), seeds in read_runs([name]).items():
            rounds = [int(row["round"]) for row in next(iter(seeds.values()))]
            means = [fmean(float(rows[place]["loss"]) for rows in seeds.values()) for place in range(len(rounds))]
            axes.plot(rounds, means, marker=".", label=method)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set(xlabel="learning round", ylabel="training loss (nats)", title=name)
        axes.legend()
    save(figure, path)


def draw_rewards(path: Path, name: str) -> None:
    """BFLN's figure 2: rewards over rounds, and the sum of the sizes of a client's clusters; a row a method."""
    from matplotlib import pyplot

    payouts = read_payouts(name)
    figure, panels = pyplot.subplots(len(payouts), 2, figsize=(12, 4 * len(payouts)), squeeze=False)
    for (method, clients), (trend, sums) in zip(payouts.items(), panels, strict=True):
        for client, rounds in sorted(clients.items()):
            earned = [sum(net for net, _ in rounds[: last + 1]) / TOKEN for last in range(len(rounds))]
            trend.plot(range(1, len(rounds) + 1), earned, linewidth=1, label=str(client))
        trend.xaxis.get_major_locator().set_params(integer=True)
        trend.set(xlabel="learning round", ylabel="tokens earned", title=f"{method}: reward")
        sums.bar(sorted(clients), [sum(size for _, size in clients[client]) for client in sorted(clients)])
        sums.set(xlabel="client", ylabel="sum of cluster sizes", title=f"{method}: cluster")
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Write a plot the same way each time."""
    from matplotlib import pyplot

    figure.savefig(path, dpi=90, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)


def collect(folders: Sequence[Path]) -> None:
    """Copy what is published of finished experiments."""
    TABLES.mkdir(exist_ok=True)
    for folder in folders:
        experiment = tomllib.loads((folder / "experiment.toml").read_text(encoding="utf-8"))
        name = experiment["name"]
        shutil.copyfile(folder / "rounds.csv", TABLES / f"{name}.csv")
        made = json.loads((folder / "experiment.json").read_text())
        made.pop("source", None)
        (TABLES / f"{name}.json").write_text(json.dumps(made, indent=2) + "\n")
        with (folder / "payouts.csv").open() as file:
            if len(file.readlines()) > 1:
                shutil.copyfile(folder / "payouts.csv", TABLES / f"{name}-payouts.csv")
        if "name" in experiment.get("shift", {}):
            collect_clusters(folder / "clients.csv", TABLES / f"{name}-clusters.csv")


def collect_clusters(clients: Path, target: Path) -> None:
    """Write the clusters of each round in one line, client after client."""
    found: dict[tuple[str, ...], list[str]] = defaultdict(list)
    columns = ("method", "alpha", "seed", "round")
    with clients.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["cluster"]:
                found[tuple(row[column] for column in columns)].append(row["cluster"])
    with target.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow((*columns, "clusters"))
        table.writerows((*key, " ".join(clusters)) for key, clusters in found.items())


def write() -> None:
    """Make all tables and plots anew."""
    import matplotlib

    matplotlib.use("Agg")
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(written(page), encoding="utf-8")
    for path, kind, *rest in re.findall(r"!\[[^\]]*\]\(results/([^)]+)\.png \"(\w+) ([^\"]+)\"\)", page):
        arguments = rest[0].split()
        target = TABLES / f"{path}.png"
        if kind == "accuracies":
            draw_accuracies(target, arguments[0], arguments[1:])
        elif kind == "frontier":
            draw_frontier(target, arguments)
        elif kind == "losses":
            draw_losses(target, arguments)
        else:
            draw_rewards(target, arguments[0])


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("collect").add_argument("folders", nargs="+", type=Path)
    commands.add_parser("write")
    options = parser.parse_args()
    if options.command == "collect":
        collect(options.folders)
    else:
        write()


if __name__ == "__main__":
    main()
