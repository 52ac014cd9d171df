"""Snapshots of a running node: made when they are due, kept in number, offered, and verified from."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing
from click.testing import CliRunner

from bflnode.consensus.light import Clock as LightClock
from bflnode.consensus.light import LightChain, Trust, verify_light_chain
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.snapshot import MAX_SNAPSHOT_BYTES, Snapshot
from bflnode.consensus.types import BlockId
from bflnode.node.cli import bflnode
from bflnode.node.configuration import Synchronisation
from bflnode.node.home import Home
from bflnode.node.p2p.messages import MAX_OFFERS_BYTES, LightChainRequest, SnapshotOffers, SnapshotsRequest
from bflnode.node.rpc.refusals import InspectionError
from bflnode.node.stored_chain import open_store
from bflnode.node.sync.snapshots import Snapshots, base_state, delete_snapshot, serve_light_chain
from bflnode.node.sync.state_sync import Verified, adopt
from bflnode.node.verify import verify_chain
from bflnode.storage.blob_store import BlobStore
from bflnode.storage.errors import MissingError, StorageError
from bflnode.storage.snapshot_store import SnapshotStore
from tests.consensus.harness import Harness
from tests.node.networks import eventually
from tests.node.stored_homes import home_of, home_with

BASE = 6


@pytest.fixture(scope="module")
def harness() -> Harness:
    made = Harness()
    for _ in range(BASE):
        made.block(made.transfer(0, made.account(1), 5))
    return made


@pytest.fixture
def home(harness: Harness, tmp_path: Path) -> Home:
    """The home of a validator with the whole chain."""
    return home_of(tmp_path / "home", harness)


@pytest.fixture
def joined(harness: Harness, home: Home, tmp_path: Path) -> Home:
    """A home whose chain starts from a snapshot of the other's, and has no further blocks."""
    made = home_with(tmp_path / "joined", harness.genesis, harness.keys[1])
    snapshots = SnapshotStore(made.snapshots)
    with open_store(home) as store, store.freeze() as frozen:
        snapshot = snapshots.create(frozen.header, frozen.commit, frozen.entries())
        adopt(made, harness.genesis, Verified(snapshot, store.load_state()))
    return made


def heights(store: SnapshotStore) -> list[int]:
    return [snapshot.height for snapshot in store.list()]


def test_a_snapshot_is_made_when_its_height_is_due(home: Home) -> None:
    async def run() -> list[int]:
        with open_store(home) as chain:
            snapshots = Snapshots(SnapshotStore(home.snapshots), chain, Synchronisation(snapshot_interval=3))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(snapshots.run)
                await trio.testing.wait_all_tasks_blocked()
                snapshots.note(BASE - 1)
                snapshots.note(BASE)
                await eventually(lambda: bool(snapshots.store.list()))
                nursery.cancel_scope.cancel()
            return heights(snapshots.store)

    assert trio.run(run) == [BASE]


async def test_no_snapshot_is_made_where_none_is_wanted(home: Home) -> None:
    with open_store(home) as chain:
        snapshots = Snapshots(SnapshotStore(home.snapshots), chain, Synchronisation(snapshot_interval=0))
        snapshots.note(BASE)
        assert heights(snapshots.store) == []


@pytest.mark.parametrize(
    "fault", [StorageError(Path("disk"), "no space", "Free some"), Rejection(Reason.TOO_LARGE, size=2**40)]
)
async def test_what_keeps_a_snapshot_from_being_written_does_not_end_the_node(
    home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: Exception
) -> None:
    def fail(*_: object) -> Snapshot:
        raise fault

    monkeypatch.setattr(SnapshotStore, "create", fail)
    with open_store(home) as chain:
        snapshots = Snapshots(SnapshotStore(home.snapshots), chain, Synchronisation(snapshot_interval=1))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(snapshots.run)
            for number in (1, 2):
                await trio.testing.wait_all_tasks_blocked()
                snapshots.note(BASE)
                await eventually(lambda number=number: caplog.text.count(f"no snapshot of height {BASE}") == number)  # type: ignore[misc]  # a default binds the loop's value
            nursery.cancel_scope.cancel()


async def test_offers_are_the_latest_first_from_the_height_asked_for(home: Home, harness: Harness) -> None:
    store = SnapshotStore(home.snapshots)
    with open_store(home) as chain:
        for height in (2, 4, 6):
            store.create(chain.header(height), chain.commit(height), harness.tree.entries())
        snapshots = Snapshots(store, chain, Synchronisation())
        for lowest, expected in ((0, [6, 4, 2]), (4, [6, 4]), (7, [])):
            answer = snapshots.serve(SnapshotsRequest(lowest).to_bytes())
            offers = SnapshotOffers.from_bytes(answer, max_bytes=MAX_OFFERS_BYTES).snapshots
            found = [Snapshot.from_bytes(data, max_bytes=MAX_SNAPSHOT_BYTES).height for data in offers]
            assert found == expected


def test_steps_lead_from_a_trusted_block_to_a_later_one(home: Home, harness: Harness) -> None:
    with open_store(home) as chain:
        answer = serve_light_chain(chain, LightChainRequest(2, BASE).to_bytes())
        steps = LightChain.from_bytes(answer, max_bytes=len(answer))
        trust = Trust(2, BlockId(chain.header(2).id))
        assert verify_light_chain(steps, trust, LightClock(harness.now_ms)).header == chain.header(BASE)
        for start, target in ((3, 2), (2, BASE + 1)):
            with pytest.raises(Rejection) as caught:
                serve_light_chain(chain, LightChainRequest(start, target).to_bytes())
            assert caught.value.reason is Reason.WRONG_HEIGHT


def test_steps_from_before_the_base_are_refused(joined: Home) -> None:
    with open_store(joined) as chain, pytest.raises(Rejection) as caught:
        serve_light_chain(chain, LightChainRequest(2, BASE).to_bytes())
    assert caught.value.reason is Reason.PRUNED


def test_a_chain_that_starts_from_a_snapshot_is_verified_from_there(joined: Home, harness: Harness) -> None:
    with open_store(joined) as chain:
        start = base_state(chain, SnapshotStore(joined.snapshots))
        found = verify_chain(chain, BlobStore(joined.blobs), reexecute=False, start=start)
        assert (found.is_valid, found.base, found.verified, found.tip) == (True, BASE, BASE, BASE)


def test_without_its_snapshot_a_chain_is_not_said_to_be_verified(joined: Home) -> None:
    with open_store(joined) as chain:
        with pytest.raises(InspectionError, match="without it nothing is verified"):
            delete_snapshot(SnapshotStore(joined.snapshots), chain, BASE)
        SnapshotStore(joined.snapshots).delete(BASE)
        with pytest.raises(MissingError, match=f"the snapshot of height {BASE}, from which this chain starts, is gone"):
            base_state(chain, SnapshotStore(joined.snapshots))
        with pytest.raises(MissingError, match="its state is not at hand"):
            verify_chain(chain, BlobStore(joined.blobs), reexecute=False)


def test_a_damaged_live_state_is_found_from_the_snapshot_on(joined: Home) -> None:
    with open_store(joined) as chain:
        start = base_state(chain, SnapshotStore(joined.snapshots))
        assert start is not None
        start.apply({b"account/nobody": b"\x92\x00\x00"})
        fault = verify_chain(chain, BlobStore(joined.blobs), reexecute=False, start=start).fault
        assert fault is not None
        assert (fault.check, fault.height) == ("state", BASE)


def run_cli(*arguments: str, exit_code: int = 0) -> str:
    result = CliRunner().invoke(bflnode, list(arguments), standalone_mode=True)
    assert result.exit_code == exit_code, result.output
    return result.output


def test_snapshots_of_a_stopped_node_are_made_listed_and_deleted(home: Home) -> None:
    where = ("--home", str(home.root))
    assert "no snapshots" in run_cli("snapshot", "list", *where)
    made = json.loads(run_cli("snapshot", "create", "--json", *where))
    assert list(made) == ["height", "block", "time_ms", "entries", "size_bytes", "state"]
    assert json.loads(run_cli("snapshot", "list", "--json", *where)) == [made]
    assert f"{BASE}:{made['block']}" in run_cli("snapshot", "list", *where).replace("\n", "")
    assert run_cli("snapshot", "delete", str(BASE), *where) == f"the snapshot of height {BASE} is gone\n"
    assert "there is no snapshot of height 6: there are none" in run_cli(
        "snapshot", "delete", str(BASE), *where, exit_code=1
    )


def test_a_chain_without_blocks_has_no_snapshot(harness: Harness, tmp_path: Path) -> None:
    empty = home_with(tmp_path / "empty", harness.genesis, harness.keys[0])
    assert "the chain has no blocks yet" in run_cli("snapshot", "create", "--home", str(empty.root), exit_code=1)


def test_what_a_joined_node_does_not_have_is_said(joined: Home, harness: Harness) -> None:
    where = ("--home", str(joined.root))
    assert f"starts from a snapshot at height {BASE}" in run_cli("chain", "verify", *where)
    assert json.loads(run_cli("chain", "verify", "--json", *where))["base"] == BASE
    assert f"starts from a snapshot at height {BASE}" in run_cli("block", "2", *where, exit_code=1)
    old = harness.blocks[1].transactions[0].id.hex()
    assert f"starts from a snapshot at height {BASE}" in run_cli("tx", old, *where, exit_code=1)
    assert json.loads(run_cli("chain", "head", "--json", *where))["height"] == BASE
    assert json.loads(run_cli("status", "--json", *where))["base"] == BASE


def test_a_joined_node_keeps_the_snapshot_that_it_starts_from(joined: Home) -> None:
    store = SnapshotStore(joined.snapshots)
    with open_store(joined) as chain:
        first = store.list()[0]
        for height in (7, 8, 9):
            store.put(replace(first, header=replace(first.header, height=height)))
        assert store.prune(2, always=chain.base) == (7,)
        assert heights(store) == [BASE, 8, 9]
