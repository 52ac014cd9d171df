"""A home that lost something: a damaged chain is moved aside, a forgetful signer's log waits for the next block."""

import logging
from pathlib import Path

import pytest

from bflnode.consensus.agreement import SignVote, Step
from bflnode.consensus.block import MAX_ROUND, VoteKind
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.types import BlockId
from bflnode.node.chain import Chain
from bflnode.node.home import Home
from bflnode.node.recovery import MAX_ASIDE, begin_log, open_chain
from bflnode.storage.chain_store import ChainStore
from bflnode.storage.errors import CorruptStore
from bflnode.storage.signer_wal import DoubleSignError, SignerWal
from tests.consensus.harness import Harness
from tests.node.stored_homes import home_of, home_with


@pytest.fixture(scope="module")
def harness() -> Harness:
    """A chain of four validators with some blocks."""
    made = Harness(actors=4)
    made.register_all()
    for _ in range(3):
        made.block()
    return made


def damage(home: Home) -> None:
    (home.chain / "CURRENT").write_bytes(b"nothing\n")


def test_a_whole_chain_is_opened_as_it_is(tmp_path: Path, harness: Harness) -> None:
    home = home_of(tmp_path, harness)
    with open_chain(home, harness.keys[0].account) as store:
        assert store.tip().height == len(harness.blocks)
    assert not list(home.chain.parent.glob("*damaged*"))


@pytest.mark.parametrize("victim", ["CURRENT", "MANIFEST-*", "*.ldb", "*.log"])
def test_a_damaged_chain_is_moved_aside_whole_and_begun_anew(
    tmp_path: Path, harness: Harness, victim: str, caplog: pytest.LogCaptureFixture
) -> None:
    home = home_of(tmp_path, harness)
    if victim == "*.ldb":
        ChainStore.open(home.chain).close()  # what was in the log is in a table now
    home.signer_wal.write_bytes(b"as it was")
    (file,) = home.chain.glob(victim)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)

    with open_chain(home, harness.keys[0].account) as store:
        assert store.tip().height == 0

    assert (home.chain.with_name("chain.damaged-1") / file.name).read_bytes() == data
    assert home.signer_wal.read_bytes() == b"as it was"
    assert "It was moved aside to" in caplog.text


def test_a_chain_whose_making_was_interrupted_is_begun_anew(tmp_path: Path, harness: Harness) -> None:
    home = home_with(tmp_path, harness.genesis, harness.keys[0])
    home.chain.mkdir(parents=True)
    (home.chain / "LOG").touch()
    with open_chain(home, harness.keys[0].account) as store:
        assert store.tip().height == 0


def test_the_chain_of_the_only_validator_stays_where_it_is(tmp_path: Path) -> None:
    harness = Harness(actors=1, stakes=(10,), specifications=())
    harness.block()
    home = home_of(tmp_path, harness)
    home.signer_wal.write_bytes(b"something was signed")
    damage(home)
    with pytest.raises(CorruptStore, match=r"the chain's only validator.*a backup"):
        open_chain(home, harness.keys[0].account)
    assert (home.chain / "CURRENT").exists()


def test_a_disk_that_damages_one_chain_after_another_is_left_to_a_person(tmp_path: Path, harness: Harness) -> None:
    home = home_of(tmp_path, harness)
    for _ in range(MAX_ASIDE):
        damage(home)
        open_chain(home, harness.keys[0].account).close()
    damage(home)
    with pytest.raises(CorruptStore, match="3 damaged chains lie beside it already: check this disk"):
        open_chain(home, harness.keys[0].account)
    assert home.chain.exists()


# The signer's log


def sign(wal: SignerWal, height: int) -> None:
    wal.sign_vote(SignVote(VoteKind.PRECOMMIT, height, 0, BlockId(bytes(32))))


def opened(home: Home, harness: Harness) -> tuple[Chain, SignerWal, SecretKey]:
    key = harness.keys[0]
    return Chain(open_chain(home, key.account)), SignerWal(home.signer_wal, key, harness.genesis.chain_id), key


def test_an_empty_log_on_a_chain_with_blocks_never_signs_for_the_next_height(
    tmp_path: Path, harness: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    home = home_of(tmp_path, harness)
    chain, wal, key = opened(home, harness)
    begin_log(wal, chain, key.account, votes_anyway=False)
    with pytest.raises(DoubleSignError):
        sign(wal, chain.height + 1)
    wal.close()
    with SignerWal(home.signer_wal, key, harness.genesis.chain_id) as again:
        assert again.mark == (chain.height + 1, MAX_ROUND, Step.PRECOMMIT)
        sign(again, chain.height + 2)
    assert f"this node doesn't vote on height {chain.height + 1}" in caplog.text
    chain.store.close()


def test_a_node_killed_before_its_first_signature_isnt_silent_for_a_height(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    harness = Harness(actors=4, specifications=())
    harness.absent = frozenset({0})
    harness.block()
    key, chain_id = harness.keys[0], harness.genesis.chain_id
    empty = home_with(tmp_path / "first", harness.genesis, key)
    with open_chain(empty, key.account) as store, SignerWal(empty.signer_wal, key, chain_id) as begun:
        begin_log(begun, Chain(store), key.account, votes_anyway=False)

    home = home_of(tmp_path, harness)
    home.signer_wal.write_bytes(empty.signer_wal.read_bytes())
    with open_chain(home, key.account) as store, SignerWal(home.signer_wal, key, chain_id) as wal:
        begin_log(wal, Chain(store), key.account, votes_anyway=False)
        sign(wal, 2)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_log_with_a_signature_stays_as_it_is(tmp_path: Path, harness: Harness) -> None:
    home = home_of(tmp_path, harness)
    chain, wal, key = opened(home, harness)
    sign(wal, 2)
    wal.close()
    before = home.signer_wal.read_bytes()
    with SignerWal(home.signer_wal, key, harness.genesis.chain_id) as again:
        begin_log(again, chain, key.account, votes_anyway=False)
    assert home.signer_wal.read_bytes() == before
    chain.store.close()


def test_an_operator_who_knows_better_has_an_empty_log_sign(tmp_path: Path, harness: Harness) -> None:
    home = home_of(tmp_path, harness)
    chain, wal, key = opened(home, harness)
    begin_log(wal, chain, key.account, votes_anyway=True)
    sign(wal, chain.height + 1)
    wal.close()
    chain.store.close()


def test_the_only_validator_signs_with_an_empty_log(tmp_path: Path) -> None:
    harness = Harness(actors=1, stakes=(10,), specifications=())
    harness.block()
    home = home_of(tmp_path, harness)
    chain, wal, key = opened(home, harness)
    begin_log(wal, chain, key.account, votes_anyway=False)
    sign(wal, 2)
    wal.close()
    chain.store.close()
