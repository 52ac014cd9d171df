"""What tests of the chain store share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bflnode.storage.chain_store import ChainStore
from tests.storage.chains import GENESIS


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ChainStore]:
    with ChainStore.create(tmp_path / "chain", GENESIS) as created:
        yield created
