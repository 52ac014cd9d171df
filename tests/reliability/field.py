"""Four validators and a witness that is never killed: real processes, which are killed, started and waited for.

The witness is a fifth node without stake or data: it follows the chain and executes every block. What it has at the end
is what the others must have.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import tomli_w

from bflnode.node.configuration import load_configuration
from bflnode.node.home import Home
from bflnode.node.testnets import processes
from bflnode.node.testnets.homes import Testnet, TestnetOptions, add_node, load_testnet, make_testnet
from bflnode.node.workers.launcher import LAUNCHER_VARIABLE
from bflnode.storage import failpoints
from bflnode.storage.home_lock import running_pid
from tests.e2e.network import eventually

from .load import Load
from .watch import Watch

VALIDATORS = 4

ROUNDS = 10_000
"""Learning rounds of the task: more than any run settles."""

LARGE_IMAGES = 1_000

DEADLINE_S = 180.0
"""For anything a node should do; on a quiet machine all of it takes seconds."""


@dataclass(frozen=True, slots=True)
class Field:
    """A running network under observation.

    Attributes:
        testnet: its folders, the witness's too.
        validators: names of the nodes that may be killed.
        watch: follows all of them.
        load: keeps it busy.
    """

    testnet: Testnet
    validators: tuple[str, ...]
    watch: Watch
    load: Load

    @property
    def witness(self) -> Home:
        """The home of the node that is never killed."""
        return self.testnet.homes[-1]

    def kill(self, names: tuple[str, ...]) -> float:
        """`kill -9` nodes, at once; the moment, on the monotonic clock."""
        pids = [pid for name in names if (pid := running_pid(self.testnet.home(name).root)) is not None]
        at_s = time.monotonic()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for name in names:
            self._wait_until_gone(name)
        return at_s

    def stop(self, name: str) -> None:
        """End a node cleanly."""
        assert processes.stop_nodes(self.testnet, (name,)) == (), f"{name} ignored SIGTERM"

    def start(self, names: tuple[str, ...]) -> float:
        """Start nodes; the moment, on the monotonic clock. Doesn't wait for them."""
        client = processes.ensure_launcher(self.testnet)
        at_s = time.monotonic()
        for name in names:
            home = self.testnet.home(name)
            home.address_file.unlink(missing_ok=True)
            client.start_node(home.root, (), home.log_file)
        return at_s

    def start_armed(self, name: str, failpoint: str) -> subprocess.Popen[bytes]:
        """Start a node that will fail on purpose, as a process of its own; its trainer comes from the launcher."""
        launcher = processes.launcher_client(self.testnet).socket_path
        return start_armed(self.testnet.home(name), failpoint, {LAUNCHER_VARIABLE: os.fspath(launcher)})

    def wait_for_blocks(self, names: tuple[str, ...], after_s: float) -> dict[str, float]:
        """Wait until each of these nodes has a block that it didn't have before; seconds from `after_s` to it."""
        return {
            name: self.watch.wait(
                f"{name} has another block",
                lambda name=name: self.watch.first(lambda seen: seen.node == name and seen.at_s > after_s),
                DEADLINE_S,
            ).at_s
            - after_s
            for name in names
        }

    def wait_for_network_block(self, after_s: float) -> float:
        """Wait until any node has a block that no node had by then; seconds from `after_s` to it."""
        known = max((seen.height for seen in self.watch.sightings if seen.at_s <= after_s), default=0)
        seen = self.watch.wait(
            "the network has another block", lambda: self.watch.first(lambda seen: seen.height > known), DEADLINE_S
        )
        return seen.at_s - after_s

    def wait_until_signing(self, names: tuple[str, ...]) -> None:
        """Wait until each of these nodes has signed a vote for a height that is new to the whole network."""
        top = self.watch.top()
        for name in names:
            self.watch.wait(f"{name} signs again", lambda name=name: self.watch.voted(name) > top, DEADLINE_S)

    def _wait_until_gone(self, name: str) -> None:
        home = self.testnet.home(name)
        eventually(f"{name} is gone", lambda: running_pid(home.root) is None, DEADLINE_S)


def start_armed(
    home: Home, failpoint: str, variables: Mapping[str, str] = MappingProxyType({})
) -> subprocess.Popen[bytes]:
    """`bflnode start` with a failpoint, its output appended to the home's log."""
    home.address_file.unlink(missing_ok=True)
    home.run.mkdir(parents=True, exist_ok=True)
    with home.log_file.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "bflnode.node.cli", "start", "--home", os.fspath(home.root)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **variables, failpoints.VARIABLE: failpoint},
            start_new_session=True,
        )


def make_field(directory: Path, seed: int, *, has_large_models: bool = False) -> Testnet:
    """Make the homes of four validators and the witness; nothing runs yet.

    Args:
        directory: a new folder.
        seed: of data and model.
        has_large_models: whether models have more than one chunk, so that they are fetched in pieces.
    """
    options = TestnetOptions(validators=VALIDATORS, rounds=ROUNDS, seed=seed, control=False)
    if has_large_models:
        images = directory.with_name(f"{directory.name}-images.npz")
        _save_large_images(images, seed)
        options = replace(options, dataset="npz", dataset_path=os.fspath(images), architecture="mlp/1x32x32/10")
    testnet, witness = add_node(make_testnet(directory, options))
    for home in testnet.homes:
        configuration = load_configuration(home).model_dump(mode="json", exclude_unset=True)
        configuration["storage"] = {"keep_rounds": 0}  # what is judged at the end must still be there
        if home == witness:
            configuration["training"] = {"enabled": False}
        home.configuration_file.write_text(tomli_w.dumps(configuration), encoding="utf-8")
    return testnet


def _save_large_images(path: Path, seed: int) -> None:
    """Ten classes of noisy patterns of 32 x 32 pixels."""
    generator = np.random.default_rng(seed)
    labels = np.arange(LARGE_IMAGES) % 10
    patterns = generator.random((10, 32, 32), dtype=np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, x=patterns[labels] + generator.random((LARGE_IMAGES, 32, 32), dtype=np.float32), y=labels)


@contextmanager
def running_field(directory: Path, seed: int) -> Iterator[Field]:
    """A network that runs under load, made if there is none in the folder; all of it is stopped after.

    What fails inside is raised after everything was stopped.
    """
    testnet = load_testnet(directory) if (directory / "testnet.json").exists() else make_field(directory, seed)
    with Watch(testnet.homes) as watch:
        try:
            processes.up(testnet)
            with Load(testnet, seed) as load:
                yield Field(testnet, testnet.nodes[:-1], watch, load)
            top, witness = watch.top(), testnet.nodes[-1]
            watch.wait("the witness has every block", lambda: watch.height(witness) >= top, DEADLINE_S)
        finally:
            processes.down(testnet)
