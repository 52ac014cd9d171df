"""Judges a stopped network: what its homes hold must be one chain, whole, with everything that was promised in it."""

from dataclasses import dataclass
from typing import Any

from bflnode.consensus.block import VoteKind
from bflnode.consensus.tables import ACCOUNTS
from bflnode.consensus.types import AccountId, BlockId, Hash, TransactionId
from bflnode.node.home import Home
from bflnode.node.testnets.homes import Testnet
from bflnode.node.testnets.report import make_report
from bflnode.node.verify import verify_chain
from bflnode.storage.blob_store import BlobStore
from bflnode.storage.chain_store import ChainStore

from .load import Load
from .watch import DoubleSignature, Watch


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was found, all of it as it must be: anything else is an AssertionError.

    Attributes:
        height: up to which all nodes were compared, block for block.
        transfers: acknowledged transactions, each of which is in the chain.
        learning_rounds: settled.
        signatures: different ones seen in the signers' logs and in stored commits, no two of a slot.
        checks: those of `bflnode testnet report` that hold.
    """

    height: int
    transfers: int
    learning_rounds: int
    signatures: int
    checks: tuple[str, ...]


def judge(testnet: Testnet, witness: Home, load: Load, watch: Watch, *, executes_all: bool = True) -> Verdict:
    """Compare every home with the one of a node that was never killed, and all of them with what was promised.

    With `executes_all` each home's chain is executed again from its genesis, else one for all, which are the same.
    """
    with ChainStore.open(witness.chain) as store:
        store.check()
        expected = [_identity(store, height) for height in range(1, store.tip().height + 1)]
        for identifier in load.acknowledged:
            found = store.transaction(TransactionId(bytes.fromhex(identifier)))
            assert found is not None, f"transaction {identifier} was acknowledged and is gone"
        state = store.load_state()
    for account, (balance, nonce) in load.balances.items():
        stored = ACCOUNTS.get(state, AccountId(account))
        assert stored is not None, f"wallet {account.hex()[:12]} is gone"
        assert (stored.balance, stored.nonce) == (balance, nonce), f"wallet {account.hex()[:12]}: {stored}"
    heights = [_compare(home, expected, watch, executes=executes_all) for home in testnet.homes]
    assert not watch.evidence, watch.evidence
    report: dict[str, Any] = make_report(testnet).to_json()
    failed = [check for check in report["checks"] if not check["ok"] and check["id"] != "rounds"]
    assert not failed, failed
    return Verdict(
        height=min(heights),
        transfers=len(load.acknowledged),
        learning_rounds=len(report["rounds"]),
        signatures=len(watch.signed),
        checks=tuple(check["id"] for check in report["checks"] if check["ok"]),
    )


def _identity(store: ChainStore, height: int) -> tuple[BlockId, Hash]:
    header = store.header(height)
    return header.id, header.state_root


def _compare(home: Home, expected: list[tuple[BlockId, Hash]], watch: Watch, *, executes: bool) -> int:
    """Check a home's chain, and compare blocks and states with the expected ones; how many."""
    with ChainStore.open(home.chain) as store:
        store.check()
        if executes:
            found = verify_chain(store, BlobStore(home.blobs), reexecute=False)
            assert found.fault is None, f"{home.root.name}: {found.fault}"
        height = min(store.tip().height, len(expected))
        for at in range(1, height + 1):
            assert _identity(store, at) == expected[at - 1], f"{home.root.name} differs at height {at}"
            _note_commit(store, at, watch)
    return height


def _note_commit(store: ChainStore, height: int, watch: Watch) -> None:
    """The signatures of a stored commit count as seen too: another block in the same slot would be a contradiction."""
    commit = store.commit(height)
    accounts = tuple(sorted(entry.account for entry in store.genesis.validators))
    for signature in commit.signatures:
        slot = (accounts[signature.index], commit.height, commit.round, VoteKind.PRECOMMIT.name)
        if watch.signed.setdefault(slot, commit.block_id) != commit.block_id:
            raise DoubleSignature(f"a commit of height {height} contradicts the log of validator {signature.index}")
