"""Joining by state: from a trusted block, through peers that are believed nothing."""

import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio

from bflnode.consensus.blob import manifest_of
from bflnode.consensus.light import Trust, make_light_chain
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.snapshot import Snapshot, write_entries
from bflnode.consensus.tables import current_validators
from bflnode.consensus.types import BlobId, BlockId
from bflnode.node.configuration import load_configuration
from bflnode.node.home import Home, HomeError
from bflnode.node.node import Node
from bflnode.node.p2p.messages import (
    CHUNKS,
    HELLO,
    LIGHT_CHAINS,
    MANIFESTS,
    PUSHES,
    REQUESTS,
    SNAPSHOTS,
    ManifestRequest,
    SnapshotOffers,
)
from bflnode.node.p2p.network import NetworkConfig, PeerId, open_network
from bflnode.node.p2p.places import Worth
from bflnode.node.stored_chain import open_store
from bflnode.node.sync import state_sync
from bflnode.node.sync.state_sync import parse_trust, ranked, sync_state
from bflnode.storage.chain_store import ChainStore
from bflnode.storage.snapshot_store import SnapshotStore
from tests.consensus.harness import Harness
from tests.node.networks import eventually
from tests.node.nodes import going, opened, running, until
from tests.node.stored_homes import home_with, store_chain
from tests.node.strangers import Stranger

EARLIER, LATER, BLOCKS = 9, 12, 14
"""Heights of the snapshots, and of the chain."""

NEWCOMER, HELPERS = 0, (1, 2)


@dataclass(frozen=True)
class Network:
    """Homes of validators of one chain; the first has no chain, the others have snapshots."""

    harness: Harness
    homes: tuple[Home, ...]

    @property
    def newcomer(self) -> Home:
        return self.homes[NEWCOMER]

    @property
    def helpers(self) -> tuple[Home, ...]:
        return self.homes[1:]

    def trust(self, height: int) -> str:
        return f"{height}:{self.harness.blocks[height - 1].id.hex()}"


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Network:
    directory = tmp_path_factory.mktemp("grown")
    harness = Harness(parameters={"propose_timeout_ms": 200, "vote_timeout_ms": 100, "timeout_step_ms": 100})
    harness.register_all()
    harness.play_round()
    assert harness.height < EARLIER
    homes = tuple(
        home_with(directory / f"home{actor}", harness.genesis, harness.keys[actor]) for actor in (NEWCOMER, *HELPERS)
    )
    while harness.height < BLOCKS:
        harness.block(harness.transfer(0, harness.account(1), 5))
        if harness.height in (EARLIER, LATER):
            for home in homes[1:]:
                assert harness.header is not None
                SnapshotStore(home.snapshots).create(harness.header, harness.last_commit, harness.tree.entries())
        if harness.height == LATER:
            harness.absent = frozenset({NEWCOMER})  # its log, which is new, would lack what it signed after that
    for home in homes[1:]:
        store_chain(harness, home.chain)
    return Network(harness, homes)


@pytest.fixture
def network(grown: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Network:
    """A copy of its own for each test, at the time of the chain's last block."""
    monkeypatch.setattr(state_sync, "now_ms", lambda: grown.harness.now_ms)
    monkeypatch.setattr(state_sync, "GATHER_S", 0.2)
    monkeypatch.setattr(state_sync, "RETRY_S", 0.1)
    homes = tuple(Home(tmp_path / home.root.name) for home in grown.homes)
    for home, copy in zip(grown.homes, homes, strict=True):
        shutil.copytree(home.root, copy.root)
    return replace(grown, homes=homes)


async def join(network: Network, trust: str, addresses: Sequence[str], patience_s: float = 20) -> None:
    """Let the newcomer start from a peer's snapshot."""
    flags = {"sync": {"state_sync": trust, "state_sync_peers": tuple(addresses)}}
    with trio.fail_after(patience_s):
        await sync_state(network.newcomer, load_configuration(network.newcomer, flags))


def addresses_of(nodes: Sequence[Node]) -> list[str]:
    return [node.network.addresses[0] for node in nodes]


def base_of(home: Home) -> tuple[int, int]:
    """Base and tip of a home's chain, which is whole."""
    with open_store(home) as store:
        store.check()
        return store.base, store.tip().height


class Liar(Stranger):
    """A peer that offers what a test tells it to."""

    address = ""

    @property
    def id(self) -> PeerId:
        return self.network.peer_id

    async def on_connected(self, peer: PeerId) -> None:
        await self.network.request(peer, HELLO, self.hello(), timeout_s=8, max_response_bytes=20_000)

    async def on_request(self, protocol: str, sender: PeerId, data: bytes) -> bytes:
        if protocol != HELLO and protocol not in self.answers:
            raise Rejection(Reason.UNKNOWN_BLOB, protocol=protocol)
        return await super().on_request(protocol, sender, data)

    def offer(self, *snapshots: Snapshot) -> None:
        self.answers[SNAPSHOTS] = SnapshotOffers(tuple(snapshot.to_bytes() for snapshot in snapshots)).to_bytes()

    def serve(self, data: bytes) -> None:
        self.answers[MANIFESTS] = manifest_of([data]).to_bytes()
        self.answers[CHUNKS] = data


@asynccontextmanager
async def lying(network: Network, kind: type[Liar] = Liar) -> AsyncIterator[Liar]:
    """A liar that listens."""
    liar = kind(network.harness.genesis.chain_id, network.harness.keys[3])
    config = NetworkConfig(bytes([77]) * 32, ("/ip4/127.0.0.1/tcp/0",), (), PUSHES, REQUESTS)
    async with open_network(config, liar) as opened_network:
        liar.network = opened_network
        liar.address = opened_network.addresses[0]
        yield liar


def snapshot_at(network: Network, height: int) -> Snapshot:
    found = SnapshotStore(network.helpers[0].snapshots).list()
    return next(snapshot for snapshot in found if snapshot.height == height)


async def test_a_node_starts_from_the_trusted_block_and_catches_up(network: Network) -> None:
    async with opened(network.helpers) as helpers:
        await join(network, network.trust(LATER), addresses_of(helpers))
        assert base_of(network.newcomer) == (LATER, LATER)
        peers = {"persistent_peers": tuple(addresses_of(helpers))}
        async with running([network.newcomer], p2p=peers) as [node]:
            await until(node, lambda: node.chain.height == BLOCKS)
            assert node.chain.tree.root == helpers[0].chain.tree.root


async def test_the_latest_snapshot_that_follows_from_the_trusted_block_is_taken(network: Network) -> None:
    async with opened(network.helpers) as helpers:
        await join(network, network.trust(4), addresses_of(helpers))
    assert base_of(network.newcomer) == (LATER, LATER)
    assert [found.height for found in SnapshotStore(network.newcomer.snapshots).list()] == [LATER]


async def test_the_genesis_may_be_the_trusted_block(network: Network) -> None:
    async with opened(network.helpers[:1]) as helpers:
        await join(network, f"0:{network.harness.chain_id.hex()}", addresses_of(helpers))
    assert base_of(network.newcomer)[0] == LATER


async def test_a_trusted_block_older_than_stake_stays_bound_leads_only_to_itself(
    network: Network, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bound_ms = network.harness.genesis.parameters.unbonding_ms
    monkeypatch.setattr(state_sync, "now_ms", lambda: network.harness.now_ms + bound_ms)
    async with opened(network.helpers[:1]) as [helper]:
        await join(network, network.trust(EARLIER), [helper.network.addresses[0]])
        assert base_of(network.newcomer) == (EARLIER, EARLIER)
        assert f"the steps to height {LATER} of {helper.network.peer_id}: expired" in caplog.text
        assert "punish" not in caplog.text


async def test_a_wrong_state_is_thrown_away_and_the_right_one_is_taken(
    network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    good = snapshot_at(network, LATER)
    forged = dict(network.harness.tree.entries())
    key = next(iter(forged))
    data = b"".join(write_entries(sorted((forged | {key: forged[key] + b"\0"}).items())))
    wrong = replace(good, state=manifest_of([data]).id, entries=len(forged))
    async with opened(network.helpers[:1]) as helpers, lying(network) as first:
        first.offer(wrong)
        first.serve(data)
        first_in_line = [first.address]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(join, network, network.trust(LATER), first_in_line)
            await eventually(lambda: "the state of height 12 of" in caplog.text)
            assert not network.newcomer.chain.exists()
            nursery.cancel_scope.cancel()
        assert not SnapshotStore(network.newcomer.snapshots).blobs.list()
        await join(network, network.trust(LATER), [first.address, *addresses_of(helpers)])
    assert base_of(network.newcomer) == (LATER, LATER)


async def test_a_peer_that_offers_a_state_and_does_not_give_it_costs_nothing_but_time(network: Network) -> None:
    async with opened(network.helpers[:1]) as helpers, lying(network) as liar:
        liar.offer(replace(snapshot_at(network, LATER), state=BlobId(bytes(32))))
        await join(network, network.trust(LATER), [liar.address, *addresses_of(helpers)])
    assert base_of(network.newcomer) == (LATER, LATER)


async def test_parts_of_states_that_never_come_whole_do_not_fill_the_disk(network: Network) -> None:
    """Each offer may begin a gigabyte: of the last few what came is kept, to go on with."""
    manifests = {manifest.id: manifest for manifest in (manifest_of([bytes([part])]) for part in range(10))}

    class Beginner(Liar):
        async def on_request(self, protocol: str, sender: PeerId, data: bytes) -> bytes:
            if protocol == MANIFESTS:
                self.asked.append(protocol)
                return manifests[ManifestRequest.from_bytes(data, max_bytes=64).blob].to_bytes()
            return await super().on_request(protocol, sender, data)

    later = snapshot_at(network, LATER)
    async with opened(network.helpers[:1]) as helpers, lying(network, Beginner) as liar:
        helpers[0].snapshots.store.delete(LATER)
        steps = make_light_chain(helpers[0].chain.store, network.harness.genesis, EARLIER, LATER)
        liar.answers[LIGHT_CHAINS] = steps.to_bytes()
        liar.offer(*(replace(later, state=state) for state in manifests))
        await join(network, network.trust(EARLIER), [liar.address, *addresses_of(helpers)])
    assert base_of(network.newcomer) == (EARLIER, EARLIER)
    assert liar.asked.count(MANIFESTS) == len(manifests)
    assert len(list(network.newcomer.snapshots.rglob("partial/*"))) == state_sync.MAX_UNFINISHED


async def test_a_claim_of_a_later_block_that_does_not_follow_is_not_believed(network: Network) -> None:
    good = snapshot_at(network, LATER)
    header = replace(good.header, height=10**6)
    async with opened(network.helpers[:1]) as helpers, lying(network) as liar:
        liar.offer(replace(good, header=header, commit=replace(good.commit, height=10**6, block_id=header.id)))
        await join(network, network.trust(LATER), [liar.address, *addresses_of(helpers)])
    assert base_of(network.newcomer) == (LATER, LATER)
    assert CHUNKS not in liar.asked


async def test_a_commit_that_does_not_hold_is_replaced_by_that_of_another_peer(network: Network) -> None:
    good = snapshot_at(network, LATER)
    few = replace(good, commit=replace(good.commit, signatures=good.commit.signatures[:1]))
    async with opened(network.helpers[:1]) as helpers, lying(network) as liar:
        liar.offer(few)
        await join(network, network.trust(LATER), [liar.address, *addresses_of(helpers)])
    with open_store(network.newcomer) as store:
        assert store.commit(LATER) == good.commit


@pytest.mark.parametrize("answer", [b"", b"\x91\x90", b"\x91\x91\xc4\x01\x00", bytes(1000)])
async def test_junk_instead_of_offers_is_punished(
    network: Network, answer: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with lying(network) as liar:
        liar.answers[SNAPSHOTS] = answer
        async with trio.open_nursery() as nursery:
            nursery.start_soon(join, network, network.trust(LATER), [liar.address])
            await eventually(lambda: "no snapshot to start from" in caplog.text)
            nursery.cancel_scope.cancel()
        assert liar.asked.count(SNAPSHOTS) == 1 or answer == SnapshotOffers(()).to_bytes()
    assert not network.newcomer.chain.exists()


async def test_a_hash_that_no_peer_knows_is_said(network: Network, caplog: pytest.LogCaptureFixture) -> None:
    async with opened(network.helpers[:1]) as helpers, trio.open_nursery() as nursery:
        nursery.start_soon(join, network, f"{LATER}:{'ab' * 32}", addresses_of(helpers))
        await eventually(lambda: "compare it with HEIGHT:HASH" in caplog.text)
        nursery.cancel_scope.cancel()
    assert not network.newcomer.chain.exists()


async def test_a_home_with_a_chain_is_left_as_it_is(network: Network, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    store_chain(network.harness, network.newcomer.chain)
    await join(network, network.trust(LATER), [])
    assert base_of(network.newcomer) == (0, BLOCKS)
    assert f"has a chain up to height {BLOCKS}" in caplog.text


async def test_a_chain_that_contradicts_the_trusted_block_is_not_started(network: Network) -> None:
    store_chain(network.harness, network.newcomer.chain)
    with pytest.raises(HomeError, match=f"at height {LATER}, not the trusted abab"):
        await join(network, f"{LATER}:{'ab' * 32}", [])


async def test_a_crash_while_the_store_is_made_leaves_a_home_that_starts_anew(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = ChainStore.create_from_snapshot

    def crash(path: Path, *rest: object) -> ChainStore:
        make(path, *rest).close()  # type: ignore[arg-type]  # the arguments of what it stands for
        raise KeyboardInterrupt

    async with opened(network.helpers[:1]) as helpers:
        with monkeypatch.context() as patch:
            patch.setattr(ChainStore, "create_from_snapshot", crash)
            with pytest.raises(KeyboardInterrupt):
                await join(network, network.trust(LATER), addresses_of(helpers))
        assert not network.newcomer.chain.exists()
        await join(network, network.trust(LATER), addresses_of(helpers))
    assert base_of(network.newcomer) == (LATER, LATER)
    assert not network.newcomer.joining_chain.exists()


async def test_a_validator_that_joined_by_state_votes(network: Network) -> None:
    account = network.harness.account(NEWCOMER)
    async with opened(network.helpers, signing={"new_log": "vote"}) as helpers:
        await join(network, network.trust(LATER), addresses_of(helpers))
        peers = {"persistent_peers": tuple(addresses_of(helpers))}
        async with opened([network.newcomer], p2p=peers) as [node], going([*helpers, node]):
            await until(node, lambda: node.chain.height > BLOCKS)
            index = current_validators(node.chain.tree).index_of(account)
            # Three of the four validators are here, and all three are needed for a quorum.
            assert index in [entry.index for entry in node.chain.tip_commit.signatures]


@pytest.mark.parametrize(
    "text", ["", "12", "12:", ":ab", f"12:{'ab' * 31}", f"12:{'zz' * 32}", f"-1:{'ab' * 32}", f"{'9' * 20}:{'ab' * 32}"]
)
def test_what_is_no_block_to_trust_is_refused_with_what_to_give(text: str) -> None:
    with pytest.raises(HomeError, match="give HEIGHT:HASH"):
        parse_trust(text)


def test_a_trusted_block_is_read() -> None:
    assert parse_trust(f" 12:{'aB' * 32} ") == Trust(12, BlockId(b"\xab" * 32))


def test_offers_are_ranked_by_height_and_then_by_holders(network: Network) -> None:
    earlier, later = snapshot_at(network, EARLIER), snapshot_at(network, LATER)
    lie = replace(later, state=BlobId(bytes(32)))
    one, two, three = PeerId("one"), PeerId("two"), PeerId("three")
    found = ranked([(one, earlier), (two, lie), (one, later), (three, later)], lambda _: Worth.STRANGER)
    assert [candidate.offers for candidate in found] == [{one: later, three: later}, {two: lie}, {one: earlier}]


def test_what_a_peer_offers_that_the_operator_named_is_tried_before_all_that_strangers_offer(network: Network) -> None:
    """Each of theirs may cost a download that drips, and there is no end of strangers."""
    earlier, later = snapshot_at(network, EARLIER), snapshot_at(network, LATER)
    named, stranger = PeerId("named"), PeerId("stranger")
    worths = {named: Worth.RESERVED, stranger: Worth.STRANGER}
    found = ranked([(stranger, later), (stranger, earlier), (named, earlier)], worths.__getitem__)
    assert [candidate.snapshot for candidate in found] == [earlier, later]
    assert list(found[0].offers) == [named, stranger]
