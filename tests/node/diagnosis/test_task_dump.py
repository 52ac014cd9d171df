import json

import trio

from bflnode.node.diagnosis.task_dump import MAX_TASKS, task_dump, task_dump_text


async def sleeper(started: trio.Event) -> None:
    started.set()
    await trio.sleep_forever()


async def test_a_dump_names_every_task_below_its_parent_and_where_it_waits() -> None:
    async with trio.open_nursery() as nursery:
        started = trio.Event()
        nursery.start_soon(sleeper, started, name="the one that sleeps")
        await started.wait()
        dump = task_dump()
        nursery.cancel_scope.cancel()
    names = [task["name"] for task in dump["tasks"]]
    (found,) = [task for task in dump["tasks"] if task["name"] == "the one that sleeps"]
    parent = dump["tasks"][names.index("the one that sleeps") - 1]
    assert found["depth"] == parent["depth"] + 1
    assert any(line.startswith("test_task_dump.py:") and line.endswith(" sleeper") for line in found["stack"])
    assert dump["statistics"]["tasks_living"] == len(dump["tasks"])
    assert any(line.startswith("  File ") for line in dump["threads"])
    assert json.loads(json.dumps(dump)) == dump
    text = task_dump_text(dump)
    assert "the one that sleeps" in text
    assert dump["threads"][-1] in text


async def test_a_dump_has_a_bounded_number_of_tasks() -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(MAX_TASKS + 10):
            nursery.start_soon(trio.sleep_forever)
        dump = task_dump()
        nursery.cancel_scope.cancel()
    assert len(dump["tasks"]) == MAX_TASKS
    assert dump["statistics"]["tasks_living"] > MAX_TASKS
