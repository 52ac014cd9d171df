"""Where the published conformance vectors are: beside the checkout, since they are others' work."""

import json
from pathlib import Path
from typing import Any

import pytest

VECTORS = Path(__file__).resolve().parents[2].parent / "shared" / "vectors"


def vector_path(name: str) -> Path:
    """A file or folder of vectors; the test is skipped where they are not installed."""
    path = VECTORS / name
    if not path.exists():
        pytest.skip(f"no conformance vectors at {path}")
    return path


def load_vectors(name: str) -> Any:
    """A JSON file of vectors."""
    return json.loads(vector_path(name).read_text())
