"""How the four folders become `bflnode.…`, and that nothing loads them under another name."""

import importlib
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("node", "consensus", "fl", "storage")
SUBPACKAGES = (
    "fl/methods",
    *(f"node/{name}" for name in ("diagnosis", "experiments", "p2p", "rpc", "sync", "testnets", "verbs", "workers")),
)
# Every module of ours, imported in one fresh process; prints the modules that come from the checkout.
IMPORT_ALL = """
import importlib, pathlib, sys
root = pathlib.Path(sys.argv[1]).resolve()
for package in sys.argv[2:]:
    for path in sorted((root / package).glob("*.py")):
        if path.stem != "__main__":
            importlib.import_module(f"bflnode.{package.replace('/', '.')}.{path.stem}".removesuffix(".__init__"))
for name, module in sorted(sys.modules.items()):
    origin = getattr(module, "__file__", None)
    if name != "__main__" and origin and pathlib.Path(origin).resolve().parent in {root / p for p in sys.argv[2:]}:
        print(name)
"""


def test_each_package_is_loaded_from_the_checkout() -> None:
    origins = {name: Path(importlib.import_module(f"bflnode.{name}").__file__ or "") for name in PACKAGES}

    assert origins == {name: ROOT / name / "__init__.py" for name in PACKAGES}


def test_no_module_is_loaded_under_its_short_name() -> None:
    # Run from the root with the root on the path: the place where `import consensus` would succeed.
    command = [sys.executable, "-c", IMPORT_ALL, str(ROOT), *PACKAGES, *SUBPACKAGES]
    completed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)

    assert completed.returncode == 0, completed.stderr
    names = completed.stdout.split()
    assert {f"bflnode.{package}" for package in PACKAGES} <= set(names)
    assert [name for name in names if not name.startswith("bflnode.")] == []


def test_packages_are_flat_but_for_the_methods() -> None:
    folders = {path.parent.relative_to(ROOT).as_posix() for name in PACKAGES for path in (ROOT / name).rglob("*.py")}

    assert folders == {*PACKAGES, *SUBPACKAGES}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the checkout with the setuptools at hand, so without a download."""
    directory = tmp_path_factory.mktemp("wheel")
    source = directory / "source"
    source.mkdir()
    for name in (*PACKAGES, "pyproject.toml", "README.md"):
        (source / name).symlink_to(ROOT / name)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    completed = subprocess.run([*pip, "-w", str(directory), str(source)], capture_output=True, text=True, timeout=120)
    assert completed.returncode == 0, completed.stderr
    return next(directory.glob("*.whl"))


def test_wheel_adds_no_top_level_name_but_bflnode(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top_level = {name.split("/")[0] for name in names}

    assert {name for name in top_level if not name.endswith(".dist-info")} == {"bflnode"}


def test_wheel_holds_every_module(wheel: Path) -> None:
    modules = {f"bflnode/{name}/{path.name}" for name in PACKAGES for path in (ROOT / name).glob("*.py")}

    assert modules <= set(zipfile.ZipFile(wheel).namelist())


def test_constraints_pin_every_direct_dependency() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(d for group in project["optional-dependencies"].values() for d in group)]
    names = {d.split("[")[0].split("=")[0].split(">")[0].strip().lower() for d in wanted} - {"bflnode"}

    assert names - pinned == set()


def test_constraints_name_no_local_path() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()

    assert [line for line in lines if not line.startswith("#") and ("/" in line or "@" in line)] == []
