"""The verbs of experiments: how they end."""

import os
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

from bflnode.node.cli import bflnode
from bflnode.node.experiments import run as experiment_run
from bflnode.node.verbs.options import INTERRUPTED, CommandError

FILE = 'name = "small"\n[[methods]]\nname = "fedavg"\n'


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_an_experiment_and_the_message_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: signal.Signals
) -> None:
    monkeypatch.setattr(experiment_run, "run_experiment", lambda *_: os.kill(os.getpid(), sent))
    (tmp_path / "file.toml").write_text(FILE)
    before = signal.getsignal(signal.SIGTERM)

    with pytest.raises(CommandError) as caught:
        CliRunner().invoke(
            bflnode,
            ["experiment", "run", str(tmp_path / "file.toml"), "-o", str(tmp_path / "results")],
            standalone_mode=False,
            catch_exceptions=False,
        )

    assert caught.value.code == INTERRUPTED
    assert caught.value.message == f"stopped: go on with `bflnode experiment resume {tmp_path / 'results'}`"
    assert signal.getsignal(signal.SIGTERM) == before
