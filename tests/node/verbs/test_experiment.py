"""The verbs of experiments: how they end."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from bflnode.node.cli import bflnode
from bflnode.node.experiments import run as experiment_run
from bflnode.node.experiments.file import ExperimentError
from bflnode.node.verbs.options import INTERRUPTED, CommandError

FILE = 'name = "small"\n[[methods]]\nname = "fedavg"\n'


def run_file(directory: Path) -> None:
    CliRunner().invoke(
        bflnode,
        ["experiment", "run", str(directory / "file.toml"), "-o", str(directory / "results")],
        standalone_mode=False,
        catch_exceptions=False,
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f'{FILE}[[methods]]\nname = "fedrep"\nhead_epochs = 5\n', "fedrep: head_epochs is 5 of 5 epochs"),
        (
            f'{FILE}[[methods]]\nname = "paa"\nclusters = 40\n',
            "paa runs on the chain, which takes clusters from 1 to 32",
        ),
        (f'{FILE}[[methods]]\nname = "fedrod"\nserver_step = inf\n', "setting server_step of method fedrod is inf"),
        (f'{FILE}[[methods]]\nname = "fedsgd"\n', "there is no method 'fedsgd'"),
        (
            f'{FILE}[attack]\nname = "copy"\nshare = 1\n',
            "small: attack.share is 1.0, which makes all of 20 clients hostile",
        ),
        (f"alphas = [0.5, 1e308]\n{FILE}", "small: an alpha of 1e+308 is no Dirichlet distribution that can be drawn"),
    ],
)
def test_what_no_run_could_do_is_refused_before_there_is_a_folder(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "file.toml").write_text(text)

    with pytest.raises(ExperimentError) as caught:
        run_file(tmp_path)

    assert words in str(caught.value)
    assert not (tmp_path / "results").exists()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C interrupts, also where the tests are a background job, which inherits that it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_an_experiment_and_the_message_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals
) -> None:
    monkeypatch.setattr(experiment_run, "run_experiment", lambda *_: os.kill(os.getpid(), sent))
    (tmp_path / "file.toml").write_text(FILE)
    before = signal.getsignal(signal.SIGTERM)

    with pytest.raises(CommandError) as caught:
        run_file(tmp_path)

    assert caught.value.code == INTERRUPTED
    assert caught.value.message == f"stopped: go on with `bflnode experiment resume {tmp_path / 'results'}`"
    assert signal.getsignal(signal.SIGTERM) == before
