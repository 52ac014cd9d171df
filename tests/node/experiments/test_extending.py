"""The page about extending, followed: its method and its data, as an installed package, in an experiment."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bflnode.node.experiments.file import parse_experiment
from bflnode.node.experiments.run import Workers, run_experiment
from bflnode.node.experiments.store import describe, make_folder

PAGE = Path(__file__).parents[3] / "docs" / "extending.md"
FILE = b"""
name = "mine"
rounds = 2
clients = 3
[data]
kind = "writers"
path = "."
[training]
epochs = 1
[[methods]]
name = "halves"
first = 1
"""
FORMAT = """
import numpy as np

CLASS_NAMES = ("a", "b")


def read_my_format(path):
    labels = np.arange(200) % 2
    inputs = np.random.default_rng(0).random((200, 1, 4, 4), dtype=np.float32)
    return (inputs, labels), (inputs, labels)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    method, data = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    entries = re.findall(r"(\[project.entry-points.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text(method)
    (tmp_path / "my_package" / "data.py").write_text(data + FORMAT)
    (tmp_path / "my_package-1.dist-info").mkdir()
    (tmp_path / "my_package-1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: my-package\nVersion: 1\n"
    )
    listed = "\n".join(re.sub(r'\[project\.entry-points\."(.*)"\]', r"[\1]", entry) for entry in entries).replace(
        '"', ""
    )
    (tmp_path / "my_package-1.dist-info" / "entry_points.txt").write_text(listed)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("my_package", "my_package.data"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("package")
def test_the_pages_method_and_data_run_in_an_experiment(tmp_path: Path) -> None:
    file = tmp_path / "file.toml"
    folder = make_folder(tmp_path / "results", file, parse_experiment(FILE, file), FILE)

    run_experiment(folder, Workers(), lambda _: None)

    assert describe(folder)["state"] == "done"
    sent = [line.split(",")[12] for line in (folder.path / "clients.csv").read_text().splitlines()[1:]]
    assert len(set(sent[:3])) == len(set(sent[3:])) == 1
    assert sent[0] != sent[3], "one half and the other have different sizes"
