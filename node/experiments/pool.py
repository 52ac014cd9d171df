"""Where clients of an experiment train: in this process, in several of this machine, or on a Ray cluster.

Every pool takes jobs as they come and gives results in the order of the jobs, with a few jobs under way: memory is
bounded by the workers, not by the clients. Results are the same on each of them. torch is imported when one is made.
"""

import multiprocessing
import os
import signal
import socket
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from bflnode.fl import runtime

from .file import ExperimentError

if TYPE_CHECKING:
    from bflnode.fl.client_round import ClientJob, ClientResult, Player
    from bflnode.fl.population import Population

JOBS_AHEAD = 2
"""Jobs under way for each worker: one that is done, one that waits."""

LOCAL_RAY = "local"

REACH_TIMEOUT_S = 10.0
"""To connect to a Ray cluster: a machine that is there answers within a second, also far away."""


class Pool(Protocol):
    """Workers that play clients' rounds."""

    def play(self, jobs: "Iterable[ClientJob]") -> "Iterator[ClientResult]":
        """Play jobs; results come in the order of the jobs."""

    def close(self) -> None:
        """End the workers, also those that are busy."""

    def __enter__(self) -> Self:
        """The pool."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it."""


class _Closing:
    def close(self) -> None:
        """End the workers."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class SamePool(_Closing):
    """Plays in this process."""

    def __init__(self, population: "Population") -> None:
        runtime.set_threads(1)
        from bflnode.fl.client_round import Player

        self._player = Player(population)

    def play(self, jobs: "Iterable[ClientJob]") -> "Iterator[ClientResult]":
        """Play one job after the other."""
        return map(self._player.play, jobs)


class ProcessPool(_Closing):
    """Processes forked from this one: torch and the data are there once, in memory that all of them share."""

    def __init__(self, population: "Population", workers: int) -> None:
        os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking for a GPU must not spoil the fork
        runtime.preload()
        self._workers = workers
        self._others = set(multiprocessing.active_children())
        self._executor = ProcessPoolExecutor(
            workers, multiprocessing.get_context("fork"), initializer=_start_worker, initargs=(population,)
        )

    def play(self, jobs: "Iterable[ClientJob]") -> "Iterator[ClientResult]":
        """Play jobs on all processes."""
        waiting: deque[Future[ClientResult]] = deque()
        try:
            for job in jobs:
                waiting.append(self._executor.submit(_play, job))
                if len(waiting) >= JOBS_AHEAD * self._workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise ExperimentError(
                "a worker process was killed, perhaps for want of memory: go on with `bflnode experiment resume` "
                "and fewer --jobs"
            ) from error

    def close(self) -> None:
        """End the processes; what they are doing is lost."""
        for process in set(multiprocessing.active_children()) - self._others:
            process.terminate()
        self._executor.shutdown(cancel_futures=True)


class RayPool(_Closing):
    """Actors on a Ray cluster; the data goes to each machine once."""

    def __init__(self, population: "Population", workers: int, address: str) -> None:
        ray = _import_ray()
        local = address == LOCAL_RAY
        places: dict[str, Any] = {"num_cpus": workers} if local else {"address": address}
        _require_reachable(address)
        try:
            ray.init(**places, log_to_driver=False, include_dashboard=False if local else None, logging_level="error")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ExperimentError(f"no Ray cluster at {address}: {error}; start one, or use --ray local") from error
        self._ray = ray
        shared = ray.put(population)
        actor = ray.remote(num_cpus=1)(_RayPlayer)
        self._actors = [actor.remote(shared) for _ in range(workers)]

    def play(self, jobs: "Iterable[ClientJob]") -> "Iterator[ClientResult]":
        """Play jobs on all actors."""
        idle = deque(self._actors)
        owners: dict[Any, Any] = {}
        waiting: deque[Any] = deque()
        for job in jobs:
            if not idle:
                done, _ = self._ray.wait(list(owners))
                idle.extend(owners.pop(reference) for reference in done)
            actor = idle.popleft()
            reference = actor.play.remote(job)
            owners[reference] = actor
            waiting.append(reference)
            if len(waiting) >= JOBS_AHEAD * len(self._actors):
                yield self._result(waiting.popleft())
        while waiting:
            yield self._result(waiting.popleft())

    def close(self) -> None:
        """Leave the cluster, which ends the actors."""
        self._ray.shutdown()

    def _result(self, reference: Any) -> "ClientResult":
        try:
            result: ClientResult = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            raise ExperimentError(
                f"a worker of the Ray cluster was lost ({error}): `bflnode experiment resume` goes on"
            ) from error
        return result


def make_pool(population: "Population", workers: int, ray_address: str | None) -> Pool:
    """The pool for so many workers.

    Raises:
        ExperimentError: Ray is wanted and not installed, or not there.
    """
    if ray_address is not None:
        return RayPool(population, workers, ray_address)
    return ProcessPool(population, workers) if workers > 1 else SamePool(population)


def _require_reachable(address: str) -> None:
    """Refuse an address where nothing listens: Ray itself tries for minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise ExperimentError(f"no Ray cluster at {address}: {error}; start one, or use --ray local") from error


class _RayPlayer:
    """The actor on a Ray worker."""

    def __init__(self, population: "Population") -> None:
        runtime.set_threads(1)
        from bflnode.fl.client_round import Player

        self._player = Player(population)

    def play(self, job: "ClientJob") -> "ClientResult":
        return self._player.play(job)


_player: "Player | None" = None
"""In a forked worker: plays the jobs it is given."""


def _start_worker(population: "Population") -> None:
    """Begin as a forked worker: leave Ctrl-C to the parent, end at SIGTERM, and with the parent, however it dies."""
    global _player
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    runtime.set_threads(1)
    from bflnode.fl.client_round import Player

    _player = Player(population)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    wait([parent.sentinel])
    os._exit(1)


def _play(job: "ClientJob") -> "ClientResult":
    assert _player is not None, "workers begin with _start_worker"
    return _player.play(job)


def _import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ExperimentError("Ray isn't installed: pip install 'bflnode[ray]', or use --jobs without --ray") from error
    return ray
