"""Agreement drivers on real stores and signer logs, joined by a network that tests can break."""

from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import trio

from bflnode.consensus.agreement import MAX_STATUS_BYTES, Status
from bflnode.consensus.block import Block, Commit, ProposalMessage, Validator, Vote
from bflnode.consensus.genesis import Genesis, GenesisAccount, Mode, Parameters
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.rejection import Premature
from bflnode.consensus.tables import ACCOUNTS
from bflnode.consensus.transaction import Evidence, Transaction, Transfer, sign_transaction
from bflnode.consensus.types import TOKEN, Hash
from bflnode.node.agreement_driver import AgreementDriver, MessageReceived, Outlets, StatusReceived
from bflnode.node.chain import Chain
from bflnode.node.mempool import Mempool
from bflnode.node.node_clock import now_ms
from bflnode.node.p2p.messages import MAX_PUSH_BYTES, PROPOSALS, STATUS, VOTES
from bflnode.node.p2p.network import PeerId
from bflnode.storage.chain_store import ChainStore
from bflnode.storage.signer_wal import SignerWal

PATIENCE_S = 20.0

PARAMETERS = Parameters(
    block_interval_ms=10,
    heartbeat_ms=600_000,
    clock_tolerance_ms=60_000,
    max_step_ms=30_000,
    propose_timeout_ms=400,
    vote_timeout_ms=200,
    timeout_step_ms=200,
    admission_amount=TOKEN,
    copy_memory_rounds=3,
    minimum_stake=1,
    unbonding_ms=60_000,
    jail_ms=10_000,
    attendance_window=100,
    missed_to_jail=95,
)


def key_of(number: int) -> SecretKey:
    return SecretKey.from_seed(bytes([number + 1]) * 32)


def genesis_of(validators: int) -> Genesis:
    accounts = sorted(key_of(number).account for number in range(validators))
    return Genesis(
        name="drivers",
        time_ms=now_ms(),
        mode=Mode.CACC,
        parameters=PARAMETERS,
        accounts=tuple(GenesisAccount(account, 100 * TOKEN) for account in accounts),
        validators=tuple(Validator(account, TOKEN) for account in accounts),
        queue=(),
        admission_key=key_of(0).account,
        admission_pool=0,
        tasks=(),
        beacon=Hash(bytes(32)),
    )


class Site:
    """One validator: its disk, its mempool and its driver."""

    def __init__(self, network: "Wires", number: int, folder: Path, genesis: Genesis, stack: ExitStack) -> None:
        self.id = PeerId(str(number))
        self.key = key_of(number)
        self.punished: list[str] = []
        self.banned: set[PeerId] = set()
        self.decided: list[int] = []
        self.accused: list[Evidence] = []
        path = folder / f"chain{number}"
        store = ChainStore.open(path) if path.exists() else ChainStore.create(path, genesis)
        self.chain = Chain(stack.enter_context(store))
        self.wal = stack.enter_context(SignerWal(folder / f"wal{number}", self.key, genesis.chain_id))
        self.mempool = Mempool(
            lambda transaction: self.chain.check(transaction, now_ms()),
            lambda rejection: isinstance(rejection, Premature),
            trio.current_time,
        )
        outlets = Outlets(
            push=lambda peer, protocol, data: network.carry(self.id, peer, protocol, data),
            peers=lambda: tuple(site for site in network.sites if site != self.id),
            punish=lambda peer, reason: self.punished.append(f"{peer}: {reason}"),
            is_banned=lambda peer: peer in self.banned,
            decided=self._decided,
            accuse=self.accused.append,
            now_ms=now_ms,
        )
        self.driver = AgreementDriver(self.chain, self.key.account, self.wal, self.mempool, outlets)

    def submit(self, transaction: Transaction) -> None:
        assert self.mempool.add(transaction)
        self.driver.poke()

    def transfer(self, amount: int = 1) -> Transaction:
        """A valid transaction of this site's account."""
        account = ACCOUNTS.get(self.chain.tree, self.key.account)
        assert account is not None
        body = Transfer(self.key.account, amount)
        return sign_transaction(self.key, self.chain.genesis.chain_id, body, nonce=account.nonce)

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(PATIENCE_S):
            while not condition():
                await self.chain.changed.wait()

    async def until_included(self, transaction: Transaction) -> None:
        await self.until(lambda: self.chain.store.transaction(transaction.id) is not None)

    def _decided(self, block: Block, commit: Commit) -> None:
        assert commit.block_id == block.id
        self.decided.append(block.height)


class Wires:
    """Carries pushes between sites as bytes, unless `is_lost` says otherwise."""

    def __init__(self) -> None:
        self.sites: dict[PeerId, Site] = {}
        self.is_lost: Callable[[PeerId, PeerId, str], bool] = lambda sender, receiver, protocol: False
        self.carried: list[tuple[PeerId, PeerId, str]] = []

    def carry(self, sender: PeerId, receiver: PeerId, protocol: str, data: bytes) -> bool:
        site = self.sites.get(receiver)
        if site is None or self.is_lost(sender, receiver, protocol):
            return False
        self.carried.append((sender, receiver, protocol))
        if protocol == VOTES:
            return site.driver.deliver(MessageReceived(Vote.from_bytes(data, max_bytes=MAX_PUSH_BYTES), sender))
        if protocol == PROPOSALS:
            message = ProposalMessage.from_bytes(data, max_bytes=MAX_PUSH_BYTES)
            return site.driver.deliver(MessageReceived(message, sender))
        assert protocol == STATUS
        return site.driver.deliver(StatusReceived(Status.from_bytes(data, max_bytes=MAX_STATUS_BYTES), sender))


@asynccontextmanager
async def sites(
    folder: Path, genesis: Genesis, count: int, *, run: bool = True
) -> AsyncIterator[tuple[Wires, list[Site]]]:
    """The first sites of a network on their disks in `folder`; all of them run, or none."""
    wires = Wires()
    with ExitStack() as stack:
        made = [Site(wires, number, folder, genesis, stack) for number in range(count)]
        wires.sites.update((site.id, site) for site in made)
        async with trio.open_nursery() as nursery:
            if run:
                for site in made:
                    nursery.start_soon(site.driver.run)
            yield wires, made
            nursery.cancel_scope.cancel()
