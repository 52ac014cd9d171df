"""What verbs share: names of files to write, questions without a terminal, usage errors."""

import os
from pathlib import Path

import pytest

from bflnode.node.home import Home, write_seed
from bflnode.node.verbs.options import CommandError, require_free
from tests.consensus.setups import ADMISSION
from tests.node.command_line import complaint, run
from tests.node.stored_homes import learning_home


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return learning_home(tmp_path_factory.mktemp("learned") / "home")


@pytest.mark.parametrize(
    "verb",
    [
        ("chain", "export"),
        ("proof", "balance", "-o"),
        ("model", "get", "-o"),
        ("debug", "dump", "-o"),
    ],
    ids=" ".join,
)
def test_a_device_is_not_replaced_by_a_file_even_with_force(
    learned: Home, tmp_path: Path, verb: tuple[str, ...]
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    said = complaint(run(*verb, pipe, "--force", "--home", learned.root), 1)

    assert f"{pipe} is no file: choose another name" in said
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_name_is_free_or_is_refused_in_words(tmp_path: Path) -> None:
    file = tmp_path / "file"
    require_free(file, is_forced=False)
    file.touch()
    require_free(file, is_forced=True)
    with pytest.raises(CommandError, match="file is there already: choose another name, or give --force"):
        require_free(file, is_forced=False)
    with pytest.raises(CommandError, match="is a folder: choose another name"):
        require_free(tmp_path, is_forced=True)


def test_a_passphrase_is_not_asked_for_where_nobody_can_answer(tmp_path: Path) -> None:
    write_seed(tmp_path / "some.key", ADMISSION.seed)

    said = complaint(run("keys", "protect", "--key-file", tmp_path / "some.key"), 2)

    assert said.startswith(
        "bflnode: there is no terminal to ask on: name a file that has the passphrase in BFLNODE_PAS"
    )


def test_a_usage_error_ends_before_the_hint_begins() -> None:
    said = complaint(run("transfer", "--to", "abcd", "--amount", "-1"), 2)

    assert said.endswith("write one like 2 or 0.25. See `bflnode transfer --help`.\n")


def test_a_task_that_isnt_there_may_be_named_in_three_ways(learned: Home) -> None:
    said = complaint(run("task", "show", "nope", "--home", learned.root), 1)

    assert "'nope' names no task: give at least 4 hex digits of its id, its name or its number" in said


def test_no_blocks_below_a_height_isnt_no_blocks(learned: Home) -> None:
    assert run("chain", "list", "--before", 1, "--home", learned.root).stdout == "the chain has no blocks below 1\n"
