"""The log: floods of lines are bounded and hide nothing else, and the file is rotated with what leads to it."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from bflnode.node import logs
from bflnode.node.logs import LINES, OLD_LOGS, LineLimit

BURST = int(LINES.burst)


def record(text: str, line: int = 1, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord("bflnode", level, "module.py", line, "a stranger says %s", (text,), None)


def test_a_place_writes_so_many_lines_and_then_says_how_many_it_left_out() -> None:
    now_s = 0.0
    limit = LineLimit(lambda: now_s)
    written = [limit.filter(record(str(number))) for number in range(2 * BURST)]
    assert written == [True] * BURST + [False] * BURST
    now_s = 1 / LINES.per_s
    line = record("more")
    assert limit.filter(line)
    assert line.getMessage() == f"a stranger says more ({BURST} lines like this one were left out before it)"
    assert not limit.filter(record("again"))


def test_a_flood_at_one_place_hides_no_line_of_another_and_none_that_was_asked_for() -> None:
    limit = LineLimit(lambda: 0.0)
    for number in range(2 * BURST):
        limit.filter(record(str(number)))
    assert not limit.filter(record("the same place", level=logging.ERROR))
    assert limit.filter(record("another place", line=2))
    assert limit.filter(record("asked for", level=logging.DEBUG))


def test_standard_error_that_is_no_log_file_stays_as_it_is(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    logs.set_up_logging("info", tmp_path / "node.log")
    logging.getLogger("bflnode").info("a line")
    assert "INFO    bflnode: a line" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


PROGRAM = """
import logging, os, sys
from pathlib import Path
from bflnode.node import logs

logs.MAX_LOG_BYTES = 10_000
logs.set_up_logging("debug", Path(sys.argv[1]))
for number in range(1000):
    logging.getLogger("bflnode").debug("line %d %s", number, "x" * 80)
os.write(2, b"last words")
"""


def test_the_log_of_a_node_is_rotated_and_last_words_are_in_the_newest(tmp_path: Path) -> None:
    file = tmp_path / "node.log"
    with file.open("ab") as log:
        subprocess.run([sys.executable, "-c", PROGRAM, str(file)], stdout=log, stderr=log, check=True, timeout=60)
    found = sorted(path.name for path in tmp_path.iterdir())
    assert found == ["node.log", *(f"node.log.{number}" for number in range(1, OLD_LOGS + 1))]
    assert all(path.stat().st_size <= 10_000 for path in tmp_path.iterdir())
    text = file.read_text()
    assert "line 999 " in text
    assert text.endswith("last words")
