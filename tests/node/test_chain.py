"""The chain of a running node: what it validates, remembers and appends."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bflnode.consensus.block import Block
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.node.chain import Chain
from bflnode.storage.chain_store import ChainStore
from tests.consensus.harness import Harness


@pytest.fixture
def harness() -> Harness:
    return Harness(actors=4)


@pytest.fixture
def chain(tmp_path: Path, harness: Harness) -> Iterator[Chain]:
    with ChainStore.create(tmp_path / "chain", harness.genesis) as store:
        yield Chain(store)


async def test_a_known_header_with_another_body_is_refused_and_not_stored(chain: Chain, harness: Harness) -> None:
    harness.block(harness.transfer(0, harness.account(1), 7))
    right = harness.blocks[0]
    wrong = Block(right.header, (), right.last_commit)
    assert right.id == wrong.id
    chain.validate(right)
    with pytest.raises(Rejection) as found:
        await chain.append(wrong, harness.last_commit)
    assert found.value.reason is Reason.WRONG_ROOT
    await chain.append(right, harness.last_commit)
    assert chain.store.block(1) == right
