"""What a running node answers beyond what its chain says: itself, its peers, agreement, waiting transactions, checks.

What belongs here: reading the parts of a `Node`, and the two things that RPC may make it do: take a signed transaction,
verify its chain. HTTP and JSON-RPC are `server`'s.
"""

import math
import os
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any, TypeVar

import trio

from bflnode.consensus.keys import account_text
from bflnode.consensus.tables import current_validators
from bflnode.consensus.transaction import MAX_AGGREGATE_BYTES, Transaction
from bflnode.node.diagnosis.task_dump import task_dump
from bflnode.node.node import Node
from bflnode.node.node_clock import now_ms
from bflnode.node.sync.snapshots import base_state, delete_snapshot, describe

from .calls import INSPECTIONS, bind
from .inspection import Inspector, Json, Sources, transaction_details, transaction_line
from .inspection_peers import ban_peer, network_information, unban_peer
from .proofs import collect, finish
from .refusals import InspectionError, ParameterError

IN_THREAD = frozenset({"block", "blockchain"})
"""Methods that read the store alone, which is slower than memory and may be shared with threads."""

READING_THREADS = 4
"""Threads that read the disk for callers: others are left for the signer's log and the chain."""

MAX_WAITING_LISTED = 100
"""Waiting transactions in one answer."""

Answer = TypeVar("Answer")


class UnknownMethodError(Exception):
    """A method that doesn't exist; the message names those that do."""


class RpcMethods:
    """The methods of one running node."""

    def __init__(self, node: Node, address: str) -> None:
        self._node = node
        self._address = address
        sources = Sources(node.chain.store, node.chain.tree, node.blobs, node.journal, node.key.account)
        self._inspector = Inspector(sources)
        self._verifying = trio.CapacityLimiter(1)
        self._reading = trio.CapacityLimiter(READING_THREADS)
        self._looking = trio.Lock()
        self._rested_s = -math.inf
        self._own: dict[str, Callable[..., Awaitable[Any]]] = {
            "status": self.status,
            "health": self.health,
            "net_info": self.net_info,
            "ban": self.ban,
            "unban": self.unban,
            "consensus_state": self.consensus_state,
            "unconfirmed_txs": self.unconfirmed_transactions,
            "broadcast_tx": self.broadcast_transaction,
            "tx": self.transaction,
            "account": self.account,
            "proof": self.proof,
            "verify": self.verify,
            "debug_tasks": self.debug_tasks,
            "snapshots": self.snapshots,
            "create_snapshot": self.create_snapshot,
            "delete_snapshot": self.delete_snapshot,
        }

    async def call(self, method: str, params: dict[str, Any]) -> Any:
        """Answer a method.

        Raises:
            UnknownMethodError, ParameterError: the request is at fault.
            InspectionError: what was asked for isn't there.
            Rejection: a transaction that was refused.
            StorageError: the disk is at fault.
        """
        own = self._own.get(method)
        if own is not None:
            return await own(**bind(own, params, bound=0))
        inspection = INSPECTIONS.get(method)
        if inspection is None:
            names = ", ".join(sorted({*self._own, *INSPECTIONS}))
            raise UnknownMethodError(f"there is no method {method[:40]!r}; methods are {names}")
        values = bind(inspection, params)
        if method in IN_THREAD:
            return await trio.to_thread.run_sync(lambda: inspection(self._inspector, **values), limiter=self._reading)
        return await self._in_turn(lambda: inspection(self._inspector, **values))

    async def _in_turn(self, look: Callable[[], Answer]) -> Answer:
        """Look at what only the node's own thread may see: callers one after the other have half of its time.

        To list two thousand models takes 0.3 s. Sixty-four connections that asked for it again and again left
        agreement so little that a block took 25 s.
        """
        async with self._looking:
            await trio.sleep_until(self._rested_s)
            began_s = trio.current_time()
            try:
                return look()
            finally:
                now_s = trio.current_time()
                self._rested_s = now_s + (now_s - began_s)

    async def status(self) -> Json:
        """The node and its chain at a glance."""
        return self.summary()

    def summary(self) -> Json:
        """What `status` answers."""
        node = self._node
        return {
            **self._inspector.status(),
            "running": True,
            "name": node.configuration.name,
            "home": str(node.home.root.absolute()),
            "pid": os.getpid(),
            "rpc": self._address,
            "node_id": str(node.network.peer_id),
            "addresses": list(node.network.addresses),
            "version": node.version,
            "uptime_ms": now_ms() - node.started_ms,
            "peers": len(node.peers.all()),
            "syncing": node.synchroniser.is_syncing,
            "activity": list(node.participant.activity),
            "trainer": asdict(node.trainer.status()),
            "mempool": len(node.mempool),
            "network": node.network.statistics(),
        }

    async def health(self) -> Json:
        """Whether the node takes part as it should, and if not, why."""
        reasons = self.unready_reasons()
        return {"ready": not reasons, "reasons": reasons}

    def unready_reasons(self) -> list[str]:
        """Why the node isn't ready; empty if it is."""
        node = self._node
        reasons = []
        others = [account for account in current_validators(node.chain.tree).accounts if account != node.key.account]
        if others and not node.peers.all():
            reasons.append("no peer is connected: check p2p.persistent_peers or give `bflnode start` a --peer")
        if node.synchroniser.is_syncing:
            reasons.append(f"it is catching up with its peers, at height {node.chain.height}")
        if node.synchroniser.problem is not None:
            reasons.append(node.synchroniser.problem)
        if node.blobs.shortage is not None:
            reasons.append(node.blobs.shortage)
        return reasons

    async def net_info(self) -> Json:
        """The peers, who was refused or is banned, and the traffic."""
        return network_information(self._node)

    async def ban(self, target: str, seconds: int | None = None, reason: str = "") -> Json:
        """Ban a peer or an IP address, and end its connections."""
        return await ban_peer(self._node, target, seconds, reason)

    async def unban(self, target: str) -> Json:
        """End a ban."""
        return unban_peer(self._node, target)

    async def consensus_state(self) -> Json:
        """Where agreement on the next block is."""
        machine = self._node.agreement.machine
        return {
            "height": machine.height,
            "round": machine.round,
            "step": machine.current_step.name.lower(),
            "leader": account_text(machine.leader),
            "is_awake": machine.is_awake,
        }

    async def debug_tasks(self) -> Json:
        """What each task and thread of this process is doing: places in the code, no values."""
        return await self._in_turn(task_dump)

    async def unconfirmed_transactions(self) -> Json:
        """Transactions that wait for a block, in order of arrival."""
        waiting = self._node.mempool.candidates()
        lines = [transaction_line(transaction) for transaction in waiting[:MAX_WAITING_LISTED]]
        return {"n_txs": len(waiting), "txs": lines}

    async def broadcast_transaction(self, transaction: str) -> Json:
        """Take a signed transaction, in hexadecimal, and send it to the next leaders.

        Raises:
            ParameterError: not hexadecimal.
            Rejection: malformed, or it can't be valid.
        """
        try:
            data = bytes.fromhex(transaction)
        except ValueError as error:
            raise ParameterError(
                "parameter 'transaction' is not hexadecimal: give the canonical bytes in hex"
            ) from error
        taken = Transaction.from_bytes(data, max_bytes=MAX_AGGREGATE_BYTES)
        self._node.relay.submit(taken)
        return {"id": taken.id.hex(), "status": "waiting"}

    async def transaction(self, reference: str) -> Json:
        """A transaction in a block, or one that waits."""
        return await self._in_turn(lambda: self._find_transaction(reference))

    def _find_transaction(self, reference: str) -> Json:
        try:
            return self._inspector.transaction(reference)
        except InspectionError:
            for waiting in self._node.mempool.candidates():
                if waiting.id.hex() == reference.strip().lower():
                    return {"status": "waiting", "height": None, **transaction_details(waiting)}
            raise

    async def account(self, reference: str = "") -> Json:
        """An account, with the nonce that its next transaction should have after those that wait."""
        return await self._in_turn(lambda: self._find_account(reference))

    def _find_account(self, reference: str) -> Json:
        answer = self._inspector.account(reference)
        sender = self._inspector.resolve_account(reference)
        waiting = [
            transaction.nonce + 1
            for transaction in self._node.mempool.candidates()
            if transaction.sender == sender and transaction.has_nonce
        ]
        return {**answer, "next_nonce": max([answer["nonce"], *waiting])}

    async def snapshots(self) -> list[Json]:
        """The snapshots that this node has for others, ascending by height."""
        store = self._node.snapshots.store
        return await trio.to_thread.run_sync(lambda: [describe(store, snapshot) for snapshot in store.list()])

    async def create_snapshot(self) -> Json:
        """Make a snapshot of the state as it is now, in a thread; one at a time."""
        return describe(self._node.snapshots.store, await self._node.snapshots.create())

    async def delete_snapshot(self, height: int) -> Json:
        """Remove the snapshot of a height.

        Raises:
            InspectionError: there is none, or this node's chain can't be verified without it.
        """
        await trio.to_thread.run_sync(delete_snapshot, self._node.snapshots.store, self._node.chain.store, height)
        return {"height": height}

    async def proof(
        self, kind: str, reference: str = "", number: str = "latest", task: str = "", start: int = 0
    ) -> Json:
        """A proof: the facts from the state of this moment, the way to its header found in a thread."""
        collected = await self._in_turn(
            lambda: collect(self._inspector, kind=kind, reference=reference, number=number, task=task)
        )
        store = self._node.chain.store
        return await trio.to_thread.run_sync(finish, store, collected, start, limiter=self._reading)

    async def verify(self, reexecute: bool = False) -> Json:
        """Check the whole chain, in a thread; one check at a time. A node that stops ends it early."""
        from bflnode.node.verify import verify_chain

        def work() -> Json:
            def progress(_height: int, _tip: int) -> None:
                trio.from_thread.check_cancelled()

            node = self._node
            start = base_state(node.chain.store, node.snapshots.store)
            found = verify_chain(node.chain.store, node.blobs, reexecute=reexecute, progress=progress, start=start)
            return {"is_valid": found.is_valid, **asdict(found)}

        return await trio.to_thread.run_sync(work, limiter=self._verifying)
