"""Files of experiments: what is read, what is refused, and in which words."""

import re
from pathlib import Path

import pytest

from bflnode.fl.population import load_data, make_population
from bflnode.node.experiments.file import Experiment, ExperimentError, parse_experiment, plans, read_experiment
from bflnode.node.experiments.pool import SamePool
from bflnode.node.experiments.round import Run
from bflnode.node.experiments.run import checked_methods, population_options
from bflnode.node.experiments.store import make_folder

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples" / "experiments"
PAGE = ROOT / "docs" / "experiments.md"

SMALLEST = 'name = "small"\n[[methods]]\nname = "fedavg"\n'


def parsed(text: str) -> Experiment:
    return parse_experiment(text.encode(), Path("file.toml"))


def refusal(text: str) -> str:
    with pytest.raises(ExperimentError) as caught:
        parsed(text)
    return str(caught.value)


def test_a_whole_number_is_a_number() -> None:
    experiment = parsed(f"alphas = [1]\n{SMALLEST}[training]\nlearning_rate = 1\n[robust]\nhostile = 0\nclip = 2\n")

    assert (experiment.alphas, experiment.training.learning_rate, experiment.robust.clip) == ((1.0,), 1.0, 2.0)


def test_the_file_that_the_documentation_shows_is_read_with_its_methods() -> None:
    (shown,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)

    assert all(checked_methods(parsed(shown)).values())


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.toml")), ids=lambda path: path.stem)
def test_every_example_is_read_with_its_methods(path: Path) -> None:
    experiment, _ = read_experiment(path)

    assert all(checked_methods(experiment).values())


def test_methods_alphas_and_seeds_are_crossed_and_runs_with_equal_data_follow_each_other() -> None:
    experiment = parsed(
        'name = "x"\nseeds = [1, 2]\nalphas = [0.1, 0]\n'
        '[[methods]]\nname = "fedavg"\n[[methods]]\nname = "prior-rows"\nlabel = "ours"\nserver_step = 1.5\n'
    )

    assert [plan.name for plan in plans(experiment)] == [
        *("fedavg-alpha0.1-seed1", "ours-alpha0.1-seed1", "fedavg-alpha0-seed1", "ours-alpha0-seed1"),
        *("fedavg-alpha0.1-seed2", "ours-alpha0.1-seed2", "fedavg-alpha0-seed2", "ours-alpha0-seed2"),
    ]
    assert experiment.methods[1].settings == {"server_step": 1.5}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"round = 3\n{SMALLEST}", "file.toml: round: there is no such setting, correct or remove it"),
        (f"{SMALLEST}[data]\nsort = 1\n", "data.sort: there is no such setting"),
        (f"rounds = 0\n{SMALLEST}", "rounds: Input should be greater than or equal to 1, it is 0"),
        (f'rounds = "few"\n{SMALLEST}', "rounds: give a whole number, it is 'few'"),
        (f"rounds = true\n{SMALLEST}", "rounds: give a whole number, it is true"),
        (f"rounds = 3.0\n{SMALLEST}", "rounds: give a whole number, it is 3.0"),
        (f'clients = "4"\n{SMALLEST}', "clients: give a whole number, it is '4'"),
        (f"{SMALLEST}[training]\nepochs = true\n", "training.epochs: give a whole number, it is true"),
        (f"{SMALLEST}[training]\nlearning_rate = true\n", "training.learning_rate: give a number, it is true"),
        (f'{SMALLEST}[data]\nsamples = "100"\n', "data.samples: give a whole number, it is '100'"),
        (f'{SMALLEST}[data]\ndownload = "no"\n', "data.download: give true or false, it is 'no'"),
        (f"{SMALLEST}[data]\ndownload = 0\n", "data.download: give true or false, it is 0"),
        (f"{SMALLEST}[data]\npath = 3\n", "data.path: give text in quotes, it is 3"),
        (f'seeds = [1, "2"]\n{SMALLEST}', "seeds.1: give a whole number, it is '2'"),
        (f"alphas = [true]\n{SMALLEST}", "alphas.0: give a number, it is true"),
        (f"seeds = 1\n{SMALLEST}", "seeds: give a list, it is 1"),
        ('name = "x"\nmethods = 3\n', "methods: give a list, it is 3"),
        (f"data = 3\n{SMALLEST}", "data: give a table, it is 3"),
        ('[[methods]]\nname = "fedavg"\n', "name: it is missing, and has no default: add it"),
        (f"alphas = [0.1, 0.10000001]\n{SMALLEST}", "alphas 0.1 and 0.10000001 are both 0.1 in results: leave one out"),
        (f"alphas = [nan]\n{SMALLEST}", "alphas.0: Input should be a finite number"),
        (f"clients = 5\nsample = 6\n{SMALLEST}", "sample is 6 of 5 clients: give at most as many, or 0 for all"),
        (f'{SMALLEST}[[methods]]\nname = "fedavg"\n', "methods has fedavg twice: give each its own label"),
        (f"seeds = [1, 1]\n{SMALLEST}", "seeds has 1 twice: name it once"),
        ('name = "../up"\n[[methods]]\nname = "fedavg"\n', "name: give 1 to 60 letters, digits"),
        ('name = "x"\nmethods = []\n', "methods: give at least one"),
        ("name = ", "file.toml is not valid TOML"),
    ],
)
def test_a_refusal_names_the_setting_and_what_to_do(text: str, words: str) -> None:
    assert words in refusal(text)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("clients = 300\n", "a learning round has at most 256 clients and not 300: set sample to 256 or less"),
        ("clients = 5000\nsample = 20\n", "at most 4096 accounts and not 5000: use fewer clients"),
    ],
)
def test_what_the_chain_cant_hold_is_refused_with_both_ways_out(settings: str, words: str) -> None:
    text = f'name = "x"\n{settings}[[methods]]\nname = "paa"\n'

    assert words in refusal(text)
    assert 'or run it without a ledger: [chain] use = "never"' in refusal(text)
    assert parsed(f'{text}[chain]\nuse = "never"\n').clients in (300, 5000)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            'name = "paa"\nclusters = 40',
            "paa runs on the chain, which takes clusters from 1 to 32, and it is 40: change",
        ),
        (
            'name = "paa"\nlabel = "many"\nclusters = 33',
            "many runs on the chain, which takes clusters from 1 to 32, and",
        ),
        ('name = "prior-rows"\nserver_step = 10.001', "which takes server_step from 0.001 to 10, and it is 10.001: "),
        ('name = "prior-rows"\nserver_step = 0.0001', "which takes server_step from 0.001 to 10, and it is 0.0001: "),
        (
            'name = "prior-rows"\nmomentum = 1e9',
            "which takes momentum from 0 to 1, and it is 1000000000.0: change it, or run",
        ),
        ('name = "prior-rows"\nmomentum = inf', "which takes momentum from 0 to 1, and it is inf: "),
        ('name = "prior-rows"\nserver_step = nan', "which takes server_step from 0.001 to 10, and it is nan: "),
        (f'name = "prior-rows"\nshared = {10**400}', "which takes shared from 0 to 1, and it is '1000"),
        ('name = "paa"\n[robust]\nhostile = 0.4999', "which takes hostile from 0 to 0.499, and it is 0.4999: "),
        ('name = "paa"\n[robust]\nclip = 1000.5', "which takes clip from 0.001 to 1000, and it is 1000.5: "),
        (
            'name = "paa"\n[chain]\nreward = 1_000_000',
            "has 9007189254 tokens to pay, and 10000 rounds of 1000000 are more: lower rounds or chain.reward, or run",
        ),
    ],
)
def test_what_is_out_of_the_chains_range_is_refused_with_the_method_the_setting_and_the_range(
    settings: str, words: str
) -> None:
    """It was refused when its run began, after the runs before it had ended."""
    assert words in refusal(f'name = "x"\nrounds = 10_000\n[[methods]]\n{settings}\n')


@pytest.mark.parametrize(
    "settings",
    [
        'name = "paa"\nclusters = 32\n[robust]\nhostile = 0.499\nclip = 1000',
        'name = "prior-rows"\nserver_step = 10\nmomentum = 1\nshared = 0',
        'name = "prior-rows"\nserver_step = 0.001\nmomentum = 0\nclusters = 1\n[robust]\nclip = 0.001\nhostile = 0',
    ],
)
def test_the_ends_of_the_chains_ranges_make_a_genesis(settings: str, tmp_path: Path) -> None:
    text = f'name = "x"\nrounds = 1\nclients = 4\n[data]\nsamples = 200\n[[methods]]\n{settings}\n'
    folder = make_folder(tmp_path / "x", tmp_path / "file.toml", parsed(text), text.encode())
    population = make_population(load_data("digits", None), population_options(folder.experiment, 0.5, 1))
    (method,) = checked_methods(folder.experiment).values()

    assert Run(folder, folder.plans[0], method, population, SamePool(population)).chain is not None


def test_settings_that_the_chain_cant_say_are_refused_for_methods_of_the_chain() -> None:
    for method, robust, words in (
        ('"paa"', "hostile = 0.3333", "counts hostile in thousandths, and 0.3333 is between two: set it to 0.333"),
        ('"prior-rows"\nserver_step = 1.2345', "", "counts server_step in thousandths"),
    ):
        text = f'name = "x"\n[[methods]]\nname = {method}\n[robust]\nname = "median"\n{robust}\n'
        assert words in refusal(text)
        parsed(f'{text}[chain]\nuse = "never"\n')


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ('name = "paa"\nserver_step = 50', "has no setting 'server_step'"),
        ('name = "paa"\nclusters = 2.0005', "setting clusters of method paa is 2.0005: give a whole number"),
    ],
)
def test_the_chain_leaves_to_a_method_what_it_refuses_itself(settings: str, words: str) -> None:
    with pytest.raises(ExperimentError, match=words):
        checked_methods(parsed(f'name = "x"\n[[methods]]\n{settings}\n'))


def test_an_alpha_of_minus_zero_is_zero() -> None:
    assert str(parsed('name = "x"\nalphas = [-0.0]\n[[methods]]\nname = "local"\n').alphas) == "(0.0,)"


def test_the_rules_of_the_chain_run_on_it_but_an_ablation_doesnt() -> None:
    text = """
name = "x"
[[methods]]
name = "paa"
[[methods]]
name = "prior-rows"
[[methods]]
name = "prior-rows"
label = "all-rows"
rows = false
"""
    experiment = parsed(text)

    assert [experiment.is_on_chain(entry) for entry in experiment.methods] == [True, True, False]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"cannot read the experiment .*none.toml: No such file"):
        read_experiment(tmp_path / "none.toml")
