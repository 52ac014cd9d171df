"""Files of experiments: what is read, what is refused, and in which words."""

import re
from pathlib import Path

import pytest

from bflnode.node.experiments.file import Experiment, ExperimentError, parse_experiment, plans, read_experiment
from bflnode.node.experiments.run import make_configured_method

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

    assert all(make_configured_method(entry) for entry in parsed(shown).methods)


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.toml")), ids=lambda path: path.stem)
def test_every_example_is_read_with_its_methods(path: Path) -> None:
    experiment, _ = read_experiment(path)

    assert all(make_configured_method(entry) for entry in experiment.methods)


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
        ('name = "x"\nmethods = []\n', "methods: Tuple should have at least 1 item"),
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


def test_settings_that_the_chain_cant_say_are_refused_for_methods_of_the_chain() -> None:
    for method, robust, words in (
        ('"paa"', "hostile = 0.3333", "counts hostile in thousandths, and 0.3333 is between two: set it to 0.333"),
        ('"prior-rows"\nserver_step = 1.2345', "", "counts server_step in thousandths"),
    ):
        text = f'name = "x"\n[[methods]]\nname = {method}\n[robust]\nname = "median"\n{robust}\n'
        assert words in refusal(text)
        parsed(f'{text}[chain]\nuse = "never"\n')


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
