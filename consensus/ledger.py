"""The ledger: which transactions and blocks are valid on top of a state, and what they change.

What belongs here: the chain's rules about blocks, accounts and money. Stake is in `staking`, learning
in `registration`, `learning_round` and `settlement`; agreement on blocks is in `machine`.

Inside a block the order is: what its header time makes due, its transactions, early closings. Validators are
chosen again after each of the first two steps if a stake has changed, so that whatever opens then sees the new ones.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import assert_never

from .block import (
    BLOCK_VERSION,
    MAX_BLOCK_BYTES,
    MAX_BLOCK_TRANSACTIONS,
    Block,
    Commit,
    Header,
    VoteKind,
    commit_hash,
    genesis_commit,
    transactions_root,
    verify_body,
    vote_payload,
)
from .evidence import verify_evidence
from .genesis import Genesis, task_id, validate_genesis
from .keys import admission_payload, verify
from .leaders import current_leader
from .learning_round import advance, apply, close_early, dismiss
from .quorum import ValidatorSet
from .registration import leave, register
from .rejection import Premature, Reason, Rejection
from .staking import (
    begin_block,
    bond,
    check_bond,
    check_tombstone,
    check_unbond,
    check_unjail,
    genesis_stakes,
    refresh_validators,
    tombstone,
    unbond,
    unjail,
)
from .state import Changes, StateReader, StateTree, StateView
from .tables import (
    ACCOUNTS,
    ADMISSION_POOL,
    BEACON,
    PREVIOUS_VALIDATORS,
    QUEUE,
    STAKES,
    SUPPLY,
    TASKS,
    VALIDATORS,
    Account,
    Beacon,
    Queue,
    Tokens,
    Validators,
    all_tasks,
    current_beacon,
    current_round,
    current_validators,
    previous_validators,
)
from .task import Task, TaskStatus
from .transaction import (
    MAX_AGGREGATE_BYTES,
    MAX_TRANSACTION_BYTES,
    Admit,
    Aggregate,
    Bond,
    Evidence,
    StakeBody,
    TaskLeave,
    TaskRegister,
    Transaction,
    Transfer,
    Unbond,
    Unjail,
)
from .types import MAX_VALIDATORS, AccountId, BlockId, ChainId, Hash, Signature
from .workspace import BlockContext, Event, Workspace

BLOCK_OVERHEAD_BYTES = 1024 + MAX_VALIDATORS * 72
"""Room that a proposer leaves in a block for the header and a commit of all validators."""


@dataclass(frozen=True, slots=True)
class Execution:
    """What a block does.

    Attributes:
        changes: of the state.
        events: of tasks, for logs and statistics.
        validators: who votes on the next block.
        beacon: in force after the block.
    """

    changes: Changes
    events: tuple[Event, ...]
    validators: ValidatorSet
    beacon: Hash


def genesis_state(genesis: Genesis) -> StateTree:
    """The state before the first block.

    Raises:
        GenesisError: fields of the genesis contradict each other.
    """
    validate_genesis(genesis)
    view = StateView(StateTree())
    balances = {entry.account: entry.balance for entry in genesis.accounts}
    members = (*(validator.account for validator in genesis.validators), *(task.requester for task in genesis.tasks))
    for account in (*balances, *members):
        ACCOUNTS.put(view, account, Account(balances.get(account, 0), 0))
    VALIDATORS.put(view, Validators(genesis.validators))
    PREVIOUS_VALIDATORS.put(view, Validators(genesis.validators))
    genesis_stakes(view, genesis)
    QUEUE.put(view, Queue(genesis.queue))
    BEACON.put(view, Beacon(genesis.beacon))
    ADMISSION_POOL.put(view, Tokens(genesis.admission_pool))
    SUPPLY.put(view, Tokens(genesis.supply))
    for number, entry in enumerate(genesis.tasks):
        task = Task(
            id=task_id(number, entry),
            number=number,
            specification=entry.specification,
            requester=entry.requester,
            status=TaskStatus.REGISTRATION,
            escrow=entry.escrow,
            header_ms=genesis.time_ms,
            clock_ms=genesis.time_ms,
            opened_ms=genesis.time_ms,
            is_extended=False,
            clients=0,
            round=1,
            attempt=0,
        )
        TASKS.put(view, task.id, task)
    tree = StateTree((key, value) for key, value in view.changes.items() if value is not None)
    assert_supply(genesis, tree)
    return tree


def execute(
    genesis: Genesis,
    reader: StateReader,
    context: BlockContext,
    transactions: Iterable[Transaction],
    last_commit: Commit,
) -> Execution:
    """Execute a block on its parent's state.

    Args:
        genesis: of the chain.
        reader: the state after the parent.
        context: of the block.
        transactions: the block's.
        last_commit: the block's commit of its parent, verified: who is missing there may be jailed.

    Raises:
        Rejection: of the first transaction that is invalid, which makes the block invalid.
    """
    work = Workspace(genesis, context, reader)
    _begin(work, last_commit)
    for transaction in transactions:
        _apply_transaction(work, transaction)
    return _finish(work, reader)


def check(genesis: Genesis, reader: StateReader, transaction: Transaction, time_ms: int) -> None:
    """Say whether a transaction would be valid in a block right now, for the mempool.

    Raises:
        Premature: not yet, but it may become so.
        Rejection: no, and it never will be on this state.
    """
    context = BlockContext(height=0, round=0, time_ms=time_ms, proposer=transaction.sender)
    _apply_transaction(Workspace(genesis, context, reader), transaction)


def build_block(
    genesis: Genesis,
    tree: StateTree,
    parent: Header | None,
    context: BlockContext,
    *,
    last_commit: Commit,
    candidates: Iterable[Transaction],
) -> tuple[Block, Execution]:
    """Make the block that `context` describes, and say what it does.

    Args:
        genesis: of the chain.
        tree: the state after the parent.
        parent: header of the parent, None for the first block.
        context: of the new block; the caller makes sure that its proposer leads and its time is after the parent's.
        last_commit: of the parent; `block.genesis_commit` for the first block.
        candidates: transactions to put in, in this order; invalid ones are left out.
    """
    transactions, execution = _propose(genesis, tree, context, candidates, last_commit)
    header = Header(
        version=BLOCK_VERSION,
        chain_id=genesis.chain_id,
        height=context.height,
        round=context.round,
        time_ms=context.time_ms,
        parent=_parent_id(genesis, parent),
        proposer=context.proposer,
        transactions_root=transactions_root(transactions),
        last_commit_hash=commit_hash(last_commit),
        validators_hash=current_validators(tree).hash,
        next_validators_hash=execution.validators.hash,
        state_root=tree.root_after(execution.changes),
        beacon=execution.beacon,
    )
    return Block(header, transactions, last_commit), execution


def validate_block(genesis: Genesis, tree: StateTree, parent: Header | None, block: Block) -> Execution:
    """Check everything about a block but who voted for it, on top of its parent's state.

    Args:
        genesis: of the chain.
        tree: the state after the parent.
        parent: header of the parent, None for the first block.
        block: the block, with its parent's commit.

    Raises:
        Rejection: the first rule that it breaks.
    """
    _check_size(block)
    _check_place(genesis, parent, block.header)
    _check_contents(tree, block)
    _check_last_commit(genesis, tree, parent, block.last_commit)
    _check_proposer(tree, block.header)
    header = block.header
    context = BlockContext(header.height, header.round, header.time_ms, header.proposer)
    execution = execute(genesis, tree, context, block.transactions, block.last_commit)
    _check_outcome(tree, header, execution)
    return execution


def verify_commit(chain_id: ChainId, validators: ValidatorSet, commit: Commit) -> None:
    """Check that precommits of more than 2/3 of the stake stand behind a commit; each signature is verified once.

    Raises:
        Rejection: WRONG_COMMIT (order of indexes), UNKNOWN_VALIDATOR, NO_QUORUM, BAD_SIGNATURE.
    """
    indexes = [entry.index for entry in commit.signatures]
    if any(second <= first for first, second in pairwise(indexes)):
        raise Rejection(Reason.WRONG_COMMIT, height=commit.height, fault="indexes of validators don't ascend")
    if indexes and indexes[-1] >= len(validators):
        raise Rejection(Reason.UNKNOWN_VALIDATOR, index=indexes[-1], validators=len(validators))
    weight = sum(validators.validators[index].stake for index in indexes)
    if not validators.is_quorum(weight):
        raise Rejection(Reason.NO_QUORUM, height=commit.height, stake=weight, total=validators.total)
    payload = vote_payload(VoteKind.PRECOMMIT, commit.height, commit.round, commit.block_id)
    for entry in commit.signatures:
        verify(validators.validators[entry.index].account, "vote", chain_id, payload, entry.signature)


def next_deadline_ms(genesis: Genesis, reader: StateReader) -> int | None:
    """The header time at which a block is needed because of a deadline, or None while nothing runs or waits.

    A block moves the clocks by at most `max_step_ms`, so a deadline further away than that needs blocks in between:
    then it is the time of the first of them.
    """
    current = current_round(reader)
    if current is not None:
        waits = [(current.header_ms, current.deadline_ms - current.clock_ms)]
    else:
        waits = [
            (task.header_ms, task.registration_deadline_ms - task.clock_ms)
            for task in all_tasks(reader)
            if task.status is TaskStatus.REGISTRATION
        ]
    step_ms = genesis.parameters.max_step_ms
    return min((header_ms + max(1, min(wait_ms, step_ms)) for header_ms, wait_ms in waits), default=None)


def assert_supply(genesis: Genesis, reader: StateReader) -> None:
    """Assert that free + bonded + unbonding + pool + escrows = supply over the whole state."""
    supply = SUPPLY.get(reader)
    assert supply is not None, "every state has a supply"
    found = money(reader)
    assert sum(found.values()) == supply.amount == genesis.supply, (found, supply.amount, genesis.supply)


def money(reader: StateReader) -> dict[str, int]:
    """Micro-tokens in a state by where they are: free, bonded, unbonding, pool, escrow."""
    stakes = [stake for _, stake in STAKES.scan(reader)]
    pool = ADMISSION_POOL.get(reader)
    assert pool is not None, "every state has an admission pool"
    bonded = sum(stake.bonded for stake in stakes)
    return {
        "free": sum(account.balance for _, account in ACCOUNTS.scan(reader)),
        "bonded": bonded,
        "unbonding": sum(stake.total for stake in stakes) - bonded,
        "pool": pool.amount,
        "escrow": sum(task.escrow for task in all_tasks(reader)),
    }


def _begin(work: Workspace, last_commit: Commit) -> None:
    """Step 1 of a block: what its time and its commit of the parent make due."""
    begin_block(work, last_commit)
    advance(work)


def _propose(
    genesis: Genesis,
    reader: StateReader,
    context: BlockContext,
    candidates: Iterable[Transaction],
    last_commit: Commit,
) -> tuple[tuple[Transaction, ...], Execution]:
    """Execute what is valid of the candidates, and within the limits."""
    work = Workspace(genesis, context, reader)
    _begin(work, last_commit)
    chosen: list[Transaction] = []
    room_bytes = MAX_BLOCK_BYTES - BLOCK_OVERHEAD_BYTES
    for transaction in candidates:
        if len(chosen) == MAX_BLOCK_TRANSACTIONS:
            break
        if len(transaction.encoded) > room_bytes:
            continue
        try:
            _apply_transaction(work, transaction)
        except Rejection:
            continue
        chosen.append(transaction)
        room_bytes -= len(transaction.encoded)
    return tuple(chosen), _finish(work, reader)


def _finish(work: Workspace, reader: StateReader) -> Execution:
    """Step 3 of a block, and what it did in all."""
    refresh_validators(work)
    close_early(work)
    refresh_validators(work)
    voted = VALIDATORS.get(reader)
    assert voted is not None, "every state has validators"
    if PREVIOUS_VALIDATORS.get(work.view) != voted:
        PREVIOUS_VALIDATORS.put(work.view, voted)
    changes = work.changes()
    before, after = _money(reader, changes), _money(work.view, changes)
    assert before == after, f"block {work.context.height} changes the money from {before} to {after}"
    return Execution(changes, tuple(work.events), current_validators(work.view), current_beacon(work.view))


def _money(reader: StateReader, changes: Changes) -> int:
    """Micro-tokens under the changed keys: if these keep their sum, the supply does."""
    total = 0
    for key in changes:
        if key.startswith(ACCOUNTS.prefix):
            account = ACCOUNTS.get(reader, key[len(ACCOUNTS.prefix) :])
            total += 0 if account is None else account.balance
        elif key.startswith(TASKS.prefix):
            task = TASKS.get(reader, key[len(TASKS.prefix) :])
            total += 0 if task is None else task.escrow
        elif key == ADMISSION_POOL.key:
            pool = ADMISSION_POOL.get(reader)
            total += 0 if pool is None else pool.amount
        elif key.startswith(STAKES.prefix):
            stake = STAKES.get(reader, key[len(STAKES.prefix) :])
            total += 0 if stake is None else stake.total
    return total


def _apply_transaction(work: Workspace, transaction: Transaction) -> None:
    """Check a transaction completely, then make its changes: a rejected one changes nothing."""
    body = transaction.body
    limit = MAX_AGGREGATE_BYTES if isinstance(body, Aggregate) else MAX_TRANSACTION_BYTES
    if len(transaction.encoded) > limit:
        raise Rejection(Reason.TOO_LARGE, size_bytes=len(transaction.encoded), limit=limit)
    transaction.verify_signature(work.genesis.chain_id)
    match body:
        case Admit():
            _admit(work, transaction.sender, body.credential)
        case Transfer():
            _transfer(work, transaction, body)
        case TaskRegister():
            _require_payment(work, transaction)
            register(work, transaction.sender, body)
            _pay_fee(work, transaction)
        case TaskLeave():
            _require_payment(work, transaction)
            leave(work, transaction.sender, body)
            _pay_fee(work, transaction)
        case Bond() | Unbond() | Unjail():
            _change_stake(work, transaction, body)
        case Evidence():
            verify_evidence(work.genesis.chain_id, body)
            check_tombstone(work, body.offender)
            tombstone(work, body.offender, transaction.id)
            dismiss(work, body.offender)
        case _:
            apply(work, transaction, body)


def _admit(work: Workspace, sender: AccountId, credential: Signature) -> None:
    if ACCOUNTS.get(work.view, sender) is not None:
        raise Rejection(Reason.ACCOUNT_EXISTS, account=sender)
    pool = ADMISSION_POOL.get(work.view)
    assert pool is not None, "every state has an admission pool"
    amount = work.genesis.parameters.admission_amount
    if pool.amount < amount:
        raise Rejection(Reason.POOL_EMPTY, left=pool.amount, needed=amount)
    verify(work.genesis.admission_key, "admit", work.genesis.chain_id, admission_payload(sender), credential)
    ADMISSION_POOL.put(work.view, Tokens(pool.amount - amount))
    ACCOUNTS.put(work.view, sender, Account(amount, 0))


def _transfer(work: Workspace, transaction: Transaction, body: Transfer) -> None:
    """Move tokens to an account that exists: opening one is ADMIT's job alone, and can't be spoiled by a gift."""
    _require_payment(work, transaction, body.amount)
    if ACCOUNTS.get(work.view, body.to) is None:
        raise Rejection(Reason.UNKNOWN_ACCOUNT, account=body.to)
    _pay_fee(work, transaction)
    _debit(work, transaction.sender, body.amount)
    work.credit(body.to, body.amount)


def _debit(work: Workspace, account: AccountId, amount: int) -> None:
    """Take what `_require_payment` has checked."""
    record = ACCOUNTS.get(work.view, account)
    assert record is not None, "checked by _require_payment"
    ACCOUNTS.put(work.view, account, replace(record, balance=record.balance - amount))


def _change_stake(work: Workspace, transaction: Transaction, body: StakeBody) -> None:
    sender = transaction.sender
    _require_payment(work, transaction, body.amount if isinstance(body, Bond) else 0)
    match body:
        case Bond(amount):
            check_bond(work, sender)
            _pay_fee(work, transaction)
            _debit(work, sender, amount)
            bond(work, sender, amount)
        case Unbond(amount):
            check_unbond(work, sender, amount)
            _pay_fee(work, transaction)
            unbond(work, sender, amount)
        case Unjail():
            check_unjail(work, sender)
            _pay_fee(work, transaction)
            unjail(work, sender)
        case _:
            assert_never(body)


def _require_payment(work: Workspace, transaction: Transaction, amount: int = 0) -> None:
    """Check expiry, nonce and funds.

    Raises:
        Rejection: UNKNOWN_ACCOUNT, EXPIRED, WRONG_NONCE, INSUFFICIENT_FUNDS.
    """
    account = ACCOUNTS.get(work.view, transaction.sender)
    if account is None:
        raise Rejection(Reason.UNKNOWN_ACCOUNT, account=transaction.sender)
    if transaction.valid_until_ms and work.context.time_ms > transaction.valid_until_ms:
        raise Rejection(Reason.EXPIRED, valid_until_ms=transaction.valid_until_ms, time_ms=work.context.time_ms)
    if transaction.nonce != account.nonce:
        kind = Premature if transaction.nonce > account.nonce else Rejection
        raise kind(Reason.WRONG_NONCE, nonce=transaction.nonce, expected=account.nonce)
    if account.balance < amount + transaction.fee:
        raise Rejection(Reason.INSUFFICIENT_FUNDS, balance=account.balance, needed=amount + transaction.fee)


def _pay_fee(work: Workspace, transaction: Transaction) -> None:
    """Use up the nonce and give the fee to the block's proposer."""
    account = ACCOUNTS.get(work.view, transaction.sender)
    assert account is not None, "checked by _require_payment"
    paid = Account(account.balance - transaction.fee, account.nonce + 1)
    ACCOUNTS.put(work.view, transaction.sender, paid)
    if transaction.fee:
        work.credit(work.context.proposer, transaction.fee)


def _parent_id(genesis: Genesis, parent: Header | None) -> BlockId:
    return BlockId(genesis.chain_id) if parent is None else parent.id


def _check_size(block: Block) -> None:
    if len(block.encoded) > MAX_BLOCK_BYTES:
        raise Rejection(Reason.TOO_LARGE, size_bytes=len(block.encoded), limit=MAX_BLOCK_BYTES)
    if len(block.transactions) > MAX_BLOCK_TRANSACTIONS:
        raise Rejection(Reason.LIMIT, transactions=len(block.transactions), limit=MAX_BLOCK_TRANSACTIONS)


def _check_place(genesis: Genesis, parent: Header | None, header: Header) -> None:
    """Chain, height, parent, time."""
    if header.version != BLOCK_VERSION:
        raise Rejection(Reason.UNSUPPORTED, version=header.version, expected=BLOCK_VERSION)
    if header.chain_id != genesis.chain_id:
        raise Rejection(Reason.WRONG_CHAIN, chain=header.chain_id, expected=genesis.chain_id)
    height = 1 if parent is None else parent.height + 1
    if header.height != height:
        raise Rejection(Reason.WRONG_HEIGHT, height=header.height, expected=height)
    parent_id = _parent_id(genesis, parent)
    if header.parent != parent_id:
        raise Rejection(Reason.WRONG_PARENT, parent=header.parent, expected=parent_id)
    time_ms = genesis.time_ms if parent is None else parent.time_ms
    if header.time_ms <= time_ms:
        raise Rejection(Reason.WRONG_TIME, time_ms=header.time_ms, parent_ms=time_ms)


def _check_contents(tree: StateTree, block: Block) -> None:
    """What the header commits to and can be compared before execution."""
    verify_body(block)
    _check_equal((("validators", block.header.validators_hash, current_validators(tree).hash),))


def _check_equal(pairs: tuple[tuple[str, Hash, Hash], ...]) -> None:
    for what, claimed, computed in pairs:
        if claimed != computed:
            raise Rejection(Reason.WRONG_ROOT, what=what, claimed=claimed, computed=computed)


def _check_last_commit(genesis: Genesis, tree: StateTree, parent: Header | None, commit: Commit) -> None:
    if parent is None:
        if commit != genesis_commit(genesis.chain_id):
            raise Rejection(Reason.WRONG_COMMIT, height=commit.height, expected="the genesis' empty commit")
        return
    if (commit.height, commit.block_id) != (parent.height, parent.id):
        raise Rejection(
            Reason.WRONG_COMMIT,
            height=commit.height,
            block=commit.block_id,
            expected_height=parent.height,
            expected_block=parent.id,
        )
    verify_commit(genesis.chain_id, previous_validators(tree), commit)


def _check_proposer(tree: StateTree, header: Header) -> None:
    """The proposer leads the header's own round; a re-proposal in a later round keeps it."""
    expected = current_leader(tree, header.height, header.round)
    if header.proposer != expected:
        raise Rejection(
            Reason.WRONG_PROPOSER,
            height=header.height,
            round=header.round,
            proposer=header.proposer,
            expected=expected,
        )


def _check_outcome(tree: StateTree, header: Header, execution: Execution) -> None:
    """What the header says of the state after the block."""
    pairs = (
        ("next validators", header.next_validators_hash, execution.validators.hash),
        ("beacon", header.beacon, execution.beacon),
        ("state", header.state_root, tree.root_after(execution.changes)),
    )
    _check_equal(pairs)
