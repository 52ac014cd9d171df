"""How answers look: tables in wide and narrow terminals, and output that can't be written."""

import errno
from pathlib import Path

import pytest

from bflnode.node.verbs import output
from bflnode.node.verbs.options import FAILURE, _outcome
from bflnode.node.verbs.output import table

HEADINGS = ("account id", "balance", "as seen")
ROWS = [("ab" * 20, "5.000000", "two words"), ("cd" * 20, "7.000000", "more")]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> "Shown":
    return Shown(monkeypatch, capsys)


class Shown:
    """What a terminal of some width shows of the table."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, width: int | None) -> list[str]:
        self._monkeypatch.setattr(output, "terminal_width", lambda _: width)
        table(HEADINGS, ROWS)
        return [line.rstrip() for line in self._capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("width", [None, 80])
def test_a_table_that_fits_is_a_grid(shown: Shown, width: int | None) -> None:
    assert shown(width)[3] == f" {'ab' * 20}   5.000000   two words"


def test_a_grid_is_made_narrower_between_words(shown: Shown) -> None:
    lines = shown(63)

    assert [line for line in lines if "two" in line or "words" in line] == [
        f" {'ab' * 20}   5.000000   two",
        f"{' ' * 55}words",
    ]


def test_where_a_grid_would_cut_words_off_each_row_is_a_list(shown: Shown) -> None:
    assert shown(40) == [
        *("", f"account id  {'ab' * 20}", "balance     5.000000", "as seen     two words"),
        *("", f"account id  {'cd' * 20}", "balance     7.000000", "as seen     more"),
    ]


def test_output_that_a_full_disk_refuses_is_no_unexpected_error(capsys: pytest.CaptureFixture[str]) -> None:
    def write() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert _outcome(write) == FAILURE
    assert capsys.readouterr().err == (
        "bflnode: cannot write the output: No space left on device: make room, or send it elsewhere\n"
    )


def test_a_file_that_cant_be_written_keeps_its_own_message(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def write() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))

    assert _outcome(write) == FAILURE
    assert "unexpected OSError" in capsys.readouterr().err
