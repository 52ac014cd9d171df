"""The fork server with real forks: what children inherit, how they end, and what is refused."""

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bflnode.fl.architectures import architecture
from bflnode.fl.datasets import load_digits
from bflnode.fl.samples import save_shard
from bflnode.node.workers.launcher import (
    LAUNCHER_VARIABLE,
    WORKER_ENTRY,
    LauncherClient,
    LauncherError,
    RunningLauncher,
    StartProcess,
    listen,
    refuse_threads,
    start_launcher,
)
from bflnode.node.workers.trainer import open_trainer
from bflnode.node.workers.worker_protocol import InitialModelJob, TrainJob
from bflnode.node.workers.worker_start import worker_starter

ARCHITECTURE = "mlp/1x8x8/10"
END_DEADLINE_S = 60


def wait_for_end(process_id: int) -> None:
    """Return when a process that isn't our child has ended; at once when it is gone already."""
    try:
        descriptor = os.pidfd_open(process_id)
    except ProcessLookupError:
        return
    try:
        assert select.select([descriptor], [], [], END_DEADLINE_S)[0], f"process {process_id} is still alive"
    finally:
        os.close(descriptor)


class WaitingWorkers:
    """Forks workers that connect to a socket here and wait for jobs that never come."""

    def __init__(self, launcher: RunningLauncher, directory: Path) -> None:
        self.launcher, self.directory = launcher, directory
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(directory / "node.sock"))
        self.listener.listen()
        self.listener.settimeout(END_DEADLINE_S)
        self.connections: list[socket.socket] = []

    def start(self, kind: str = "worker") -> int:
        """A process id; when this returns the worker is waiting."""
        arguments = (str(self.directory / "node.sock"),)
        request = StartProcess(kind, WORKER_ENTRY, arguments, str(self.directory / "log"))
        process_id = self.launcher.client.start(request)
        connection, _ = self.listener.accept()
        assert connection.recv(1)
        self.connections.append(connection)
        return process_id


async def trained_bytes(directory: Path, output: str) -> bytes:
    job = TrainJob(
        ARCHITECTURE, str(directory / "base"), str(directory / "shard.npz"), str(directory / output), epochs=1
    )
    async with open_trainer(directory / "run", worker_starter()) as trainer:
        await trainer.run(job)
    return (directory / output).read_bytes()


async def test_forked_worker_trains_to_the_same_bytes_as_a_spawned_one(
    launcher: RunningLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_shard(tmp_path / "shard.npz", load_digits())
    (tmp_path / "base").write_bytes(architecture(ARCHITECTURE).initial_weights(0))
    spawned = await trained_bytes(tmp_path, "spawned")
    monkeypatch.setenv(LAUNCHER_VARIABLE, str(launcher.client.socket_path))

    assert await trained_bytes(tmp_path, "forked") == spawned


async def test_trainer_forks_when_a_launcher_is_alive(launcher: RunningLauncher, forking: Path, tmp_path: Path) -> None:
    async with open_trainer(tmp_path / "run", worker_starter()) as trainer:
        await trainer.run(InitialModelJob(ARCHITECTURE, 0, str(tmp_path / "initial")))
        status = Path(f"/proc/{trainer.status().process_id}/status").read_text()

    assert f"PPid:\t{launcher.process.pid}\n" in status
    assert "Name:\tbflnode-worker\n" in status


async def test_trainer_spawns_when_the_launcher_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LAUNCHER_VARIABLE, str(tmp_path / "gone.sock"))
    async with open_trainer(tmp_path / "run", worker_starter()) as trainer:
        await trainer.run(InitialModelJob(ARCHITECTURE, 0, str(tmp_path / "initial")))
        status = Path(f"/proc/{trainer.status().process_id}/status").read_text()

    assert f"PPid:\t{os.getpid()}\n" in status


def test_launcher_has_imported_torch_and_libp2p_and_still_has_one_thread(launcher: RunningLauncher) -> None:
    mapped = Path(f"/proc/{launcher.process.pid}/maps").read_text()

    assert "libtorch" in mapped
    assert len(list(Path(f"/proc/{launcher.process.pid}/task").iterdir())) == 1


def test_process_with_several_threads_refuses_to_fork() -> None:
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    try:
        with pytest.raises(RuntimeError, match="threads, so it can't fork safely"):
            refuse_threads()
    finally:
        release.set()
        thread.join()


def test_child_leads_its_own_session_and_writes_to_its_own_log(launcher: RunningLauncher, tmp_path: Path) -> None:
    (tmp_path / "log").write_text("earlier\n")
    process_id = WaitingWorkers(launcher, tmp_path).start()

    assert os.getsid(process_id) == process_id
    assert Path(f"/proc/{process_id}/fd/1").resolve() == tmp_path / "log"
    assert Path(f"/proc/{process_id}/fd/2").resolve() == tmp_path / "log"
    assert (tmp_path / "log").read_text().startswith("earlier\n")


def test_child_holds_none_of_the_launchers_sockets(launcher: RunningLauncher, tmp_path: Path) -> None:
    process_id = WaitingWorkers(launcher, tmp_path).start()
    targets = [str(path.readlink()) for path in Path(f"/proc/{process_id}/fd").iterdir()]

    assert len([target for target in targets if target.startswith("socket:")]) == 1


def test_ended_child_is_reaped(launcher: RunningLauncher, tmp_path: Path) -> None:
    workers = WaitingWorkers(launcher, tmp_path)
    process_id = workers.start()
    os.kill(process_id, signal.SIGKILL)
    wait_for_end(process_id)
    workers.start()  # whoever gets an answer knows that the launcher has handled the signals before it

    assert not Path(f"/proc/{process_id}").exists()


def test_child_that_fails_leaves_its_traceback_in_its_log(launcher: RunningLauncher, tmp_path: Path) -> None:
    request = StartProcess("node", "bflnode.nowhere:main", (), str(tmp_path / "log"))
    wait_for_end(launcher.client.start(request))

    assert "ModuleNotFoundError: No module named 'bflnode.nowhere'" in (tmp_path / "log").read_text()
    assert launcher.process.poll() is None


def test_wrong_arguments_of_a_child_are_explained_in_its_log(launcher: RunningLauncher, tmp_path: Path) -> None:
    wait_for_end(launcher.client.start_worker(["--threads", "0", "socket"], tmp_path / "log"))

    assert "--threads 0: 1 or more are needed" in (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_entry_that_is_not_ours_is_refused(launcher: RunningLauncher, tmp_path: Path) -> None:
    with pytest.raises(LauncherError, match="os:abort is none of bflnode's entries"):
        launcher.client.start(StartProcess("node", "os:abort", (), str(tmp_path / "log")))


def test_unwritable_log_is_refused(launcher: RunningLauncher, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LauncherError, match=r"node can't be started: .*file"):
        launcher.client.start_node(tmp_path, [], tmp_path / "file" / "log")


def test_garbage_on_the_socket_does_not_stop_the_launcher(launcher: RunningLauncher) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect(str(launcher.client.socket_path))
        connection.sendall(b"\xff" * 100)
        assert connection.recv(1) == b""

    assert launcher.client.is_alive()


def test_second_launcher_in_the_same_place_is_refused(launcher: RunningLauncher) -> None:
    with pytest.raises(LauncherError, match=r"a launcher is already running at .* stop its testnet first"):
        start_launcher(launcher.client.socket_path.parent)

    assert launcher.client.is_alive()


def test_dead_launcher_is_reported_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(LauncherError, match=r"no launcher answers at .*gone\.sock"):
        LauncherClient(tmp_path / "gone.sock").start_node(tmp_path, [], tmp_path / "log")


def test_stop_ends_all_children_even_one_that_does_not_react(tmp_path: Path) -> None:
    launcher = start_launcher(tmp_path / "launcher")
    workers = WaitingWorkers(launcher, tmp_path)
    reacting, frozen = workers.start("node"), workers.start()
    os.kill(frozen, signal.SIGSTOP)
    killed = launcher.client.stop()

    assert killed == (frozen,)
    assert launcher.process.wait(END_DEADLINE_S) == 0
    assert not any(Path(f"/proc/{process_id}").exists() for process_id in (reacting, frozen))
    assert not launcher.client.socket_path.exists()


def test_terminated_launcher_ends_its_children(tmp_path: Path) -> None:
    launcher = start_launcher(tmp_path / "launcher")
    workers = WaitingWorkers(launcher, tmp_path)
    children = [workers.start("node"), workers.start()]
    launcher.process.terminate()

    assert launcher.process.wait(END_DEADLINE_S) == 0
    assert not any(Path(f"/proc/{process_id}").exists() for process_id in children)


def test_socket_that_a_dead_launcher_left_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "launcher.sock"
    listen(path).close()
    with listen(path), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        assert connection.connect_ex(str(path)) == 0


def test_directory_too_long_for_a_socket_is_refused_with_the_limit(tmp_path: Path) -> None:
    with pytest.raises(LauncherError, match="a socket's path at most 100: use a shorter directory"):
        start_launcher(tmp_path / ("long" * 30))


def test_only_this_user_can_reach_the_launcher(launcher: RunningLauncher) -> None:
    assert launcher.client.socket_path.stat().st_mode & 0o177 == 0


def test_launcher_without_arguments_explains_itself() -> None:
    command = [sys.executable, "-m", "bflnode.node.workers.launcher"]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert completed.returncode == 2
    assert "the following arguments are required: socket" in completed.stderr
