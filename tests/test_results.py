"""docs/results.md is what its committed tables say."""

import importlib.util
import tomllib
from csv import DictReader
from itertools import product
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent

TABLES = ROOT / "docs" / "results"

EXPERIMENTS = ROOT / "examples" / "experiments" / "results"

HEADER = "method,alpha,seed,round,received,post,global,loss\n"


@pytest.fixture(scope="module")
def results() -> ModuleType:
    specification = importlib.util.spec_from_file_location("results", ROOT / "benchmarks" / "results.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_page_is_what_its_tables_say(results: ModuleType) -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")

    assert results.written(page) == page


def test_published_experiments_are_there_to_run_again() -> None:
    published = {path.stem for path in TABLES.glob("*.json")}

    assert published
    assert published <= {path.stem for path in EXPERIMENTS.glob("*.toml")}


@pytest.mark.parametrize("name", sorted(path.stem for path in TABLES.glob("*.json")))
def test_a_published_table_has_every_round_of_every_run_of_its_experiment_once(name: str) -> None:
    experiment = tomllib.loads((EXPERIMENTS / f"{name}.toml").read_text())
    expected = product(
        experiment["seeds"],
        experiment["alphas"],
        [method.get("label", method["name"]) for method in experiment["methods"]],
        range(1, experiment["rounds"] + 1),
    )

    with (TABLES / f"{name}.csv").open(newline="") as file:
        rows = [(int(row["seed"]), float(row["alpha"]), row["method"], int(row["round"])) for row in DictReader(file)]

    assert sorted(rows) == sorted(expected)


def test_differences_are_paired_by_alpha_and_seed(
    results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        *("ours,0.1,1,1,0,0.2,,1", "ours,0.1,1,2,0,0.5,,1", "ours,0.1,2,2,0,0.9,,1", "ours,0.1,3,2,0,0.1,,1"),
        *("theirs,0.1,2,2,0,0.8,,1", "theirs,0.1,1,2,0,0.7,,1"),
    ]
    (tmp_path / "made.csv").write_text(HEADER + "\n".join(rows) + "\n")
    read_runs = results.read_runs
    monkeypatch.setattr(results, "read_runs", lambda names: read_runs(names, tmp_path))

    assert results.differences("post", "ours", "made").splitlines()[-1] == "| theirs | -5.0 ± 21.2, 1 of 2 |"
    assert results.accuracies("post", "made").splitlines()[2:] == [
        "| ours | 0.500 ± 0.400 | 3 |",
        "| theirs | **0.750 ± 0.071** | 2 |",
    ]


def test_methods_are_compared_by_the_learning_rate_of_each_experiment(
    results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {
        "slow": ["ours,0.3,1,1,0,0.1,,1", "ours,0.3,1,2,0,0.5,,1"],
        "quick": ["ours,0.3,1,1,0,0.75,,1", "theirs,0.3,1,1,0,0.6,,1"],
    }
    for name, rows in made.items():
        (tmp_path / f"{name}.csv").write_text(HEADER + "\n".join(rows) + "\n")
    (tmp_path / "slow.toml").write_text("rounds = 2\n")
    (tmp_path / "quick.toml").write_text("[training]\nlearning_rate = 0.02\n")
    read_runs = results.read_runs
    monkeypatch.setattr(results, "read_runs", lambda names: read_runs(names, tmp_path))
    monkeypatch.setattr(results, "EXPERIMENTS", tmp_path)

    assert results.rates("post", "slow", "quick").splitlines() == [
        "| method | 0.001 | 0.02 |",
        "|---|---|---|",
        "| ours | 0.500 | **0.750** |",
        "| theirs | - | **0.600** |",
    ]


def test_clusters_are_compared_with_the_groups_of_clients(
    results: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "TABLES", tmp_path)
    clusters = {1: "01230123", 2: "00001111"}
    rows = [
        f"ours,0.5,1,{number},{client},{label}"
        for number, labels in clusters.items()
        for client, label in enumerate(labels)
    ]
    (tmp_path / "clients.csv").write_text(
        "\n".join(("method,alpha,seed,round,client,cluster", *rows, "local,0.5,1,1,0,"))
    )

    results.collect_clusters(tmp_path / "clients.csv", tmp_path / "made-clusters.csv")

    assert results.groups("made").splitlines() == [
        "| method | round 1 | round 2 |",
        "|---|---|---|",
        "| ours | 1.00 | -0.27 |",
    ]
