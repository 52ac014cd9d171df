"""Small chains of transfers for the tests of storage, and a way to damage them."""

from collections.abc import Callable
from pathlib import Path

import plyvel

from bflnode.consensus.block import (
    Block,
    Commit,
    CommitSignature,
    Header,
    Validator,
    VoteKind,
    commit_hash,
    sign_vote,
    transactions_root,
)
from bflnode.consensus.genesis import Genesis, GenesisAccount, Mode, default_parameters
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.state import Changes, StateTree, StateView
from bflnode.consensus.tables import ACCOUNTS, Account
from bflnode.consensus.transaction import Transfer, sign_transaction
from bflnode.consensus.types import Hash
from bflnode.storage.chain_store import ChainStore

ALICE, BOB = sorted((SecretKey(bytes([1]) * 32), SecretKey(bytes([2]) * 32)), key=lambda key: key.account)
GENESIS = Genesis(
    name="storage test",
    time_ms=1_000,
    mode=Mode.CACC,
    parameters=default_parameters(),
    accounts=(GenesisAccount(ALICE.account, 1_000_000), GenesisAccount(BOB.account, 0)),
    validators=(Validator(ALICE.account, 5_000_000),),
    queue=(),
    admission_key=ALICE.account,
    admission_pool=0,
    tasks=(),
    beacon=Hash(bytes(32)),
)


def transfer_block(store: ChainStore, state: StateTree, amount: int) -> tuple[Block, Commit, Changes]:
    """A block in which Alice sends tokens to Bob; the ledger's other rules don't matter to a store."""
    tip, view = store.tip(), StateView(state)
    alice, bob = ACCOUNTS.get(state, ALICE.account), ACCOUNTS.get(state, BOB.account)
    assert alice is not None
    assert bob is not None
    transaction = sign_transaction(ALICE, GENESIS.chain_id, Transfer(BOB.account, amount), nonce=alice.nonce)
    ACCOUNTS.put(view, ALICE.account, Account(alice.balance - amount, alice.nonce + 1))
    ACCOUNTS.put(view, BOB.account, Account(bob.balance + amount, bob.nonce))
    last_commit = store.commit(tip.height)
    header = Header(
        version=1,
        chain_id=GENESIS.chain_id,
        height=tip.height + 1,
        round=0,
        time_ms=tip.time_ms + 1,
        parent=tip.block_id,
        proposer=ALICE.account,
        transactions_root=transactions_root((transaction,)),
        last_commit_hash=commit_hash(last_commit),
        validators_hash=Hash(bytes(32)),
        next_validators_hash=Hash(bytes(32)),
        state_root=state.root_after(view.changes),
        beacon=Hash(bytes(32)),
    )
    vote = sign_vote(ALICE, GENESIS.chain_id, VoteKind.PRECOMMIT, header.height, 0, header.id)
    commit = Commit(header.height, 0, header.id, (CommitSignature(0, vote.signature),))
    return Block(header, (transaction,), last_commit), commit, view.changes


def extend(store: ChainStore, amounts: list[int]) -> list[tuple[Block, Commit]]:
    """Append one block for each amount."""
    state, appended = store.load_state(), []
    for amount in amounts:
        block, commit, changes = transfer_block(store, state, amount)
        store.append(block, commit, changes)
        state.apply(changes)
        appended.append((block, commit))
    return appended


def change_value(path: Path, key: bytes, change: Callable[[bytes], bytes | None]) -> None:
    """Change one value of a closed database, past all of LevelDB's checksums."""
    database = plyvel.DB(str(path))
    value = change(database.get(key))
    database.delete(key) if value is None else database.put(key, value)
    database.close()
