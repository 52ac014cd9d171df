"""What a running process is doing right now: trio's tasks and their stacks, the threads'. For bug reports.

Places in the code only, never values: a stack has no secrets.
"""

import faulthandler
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trio

MAX_TASKS = 1000
"""Tasks in one dump: a node with 64 peers has about 500."""

MAX_FRAMES = 60
"""Frames of one stack: deeper ones are a recursion."""


def task_dump() -> dict[str, Any]:
    """The tasks of this trio run, children below their parents, and all threads' stacks."""
    root = trio.lowlevel.current_root_task()
    assert root is not None, "called from within a trio run"
    statistics = trio.lowlevel.current_statistics()
    return {
        "statistics": {
            "tasks_living": statistics.tasks_living,
            "tasks_runnable": statistics.tasks_runnable,
            "seconds_to_next_deadline": min(statistics.seconds_to_next_deadline, 1e9),
            "threads_in_use": trio.to_thread.current_default_thread_limiter().borrowed_tokens,
        },
        "tasks": [line for _, line in zip(range(MAX_TASKS), _lines(root, 0), strict=False)],
        "threads": _threads(),
    }


def _lines(task: trio.lowlevel.Task, depth: int) -> Iterator[dict[str, Any]]:
    frames = [
        f"{Path(frame.f_code.co_filename).name}:{line} {frame.f_code.co_qualname}"
        for _, (frame, line) in zip(range(MAX_FRAMES), task.iter_await_frames(), strict=False)
    ]
    yield {"depth": depth, "name": task.name, "stack": frames}
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield from _lines(child, depth + 1)


def _threads() -> list[str]:
    """Every thread's stack, innermost frame first."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace").splitlines()


def task_dump_text(dump: dict[str, Any]) -> str:
    """A dump as people read it."""
    lines = [", ".join(f"{name} {value}" for name, value in dump["statistics"].items()), ""]
    for task in dump["tasks"]:
        indent = "  " * task["depth"]
        lines.append(f"{indent}{task['name']}")
        lines += [f"{indent}    {frame}" for frame in task["stack"]]
    return "\n".join([*lines, "", *dump["threads"], ""])
