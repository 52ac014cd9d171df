"""Stake: bonding and unbonding, jail, slashing, and who is a validator.

    free --BOND--> bonded --UNBOND--> unbonding --time--> free
    slashed out of bonded and unbonding -> admission pool

The validators of the next block are the accounts with at least `minimum_stake` bonded that are neither jailed nor
tombstoned: at most `MAX_VALIDATORS`, those with the most, of equal ones the lower key. There is always one: what would
leave none is refused, put off or left out.

What belongs here: stake, and attendance since it leads to jail. What proves a double signature is in `evidence`; nonces
and fees are `ledger`'s.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from fractions import Fraction

from .block import Commit, Validator
from .genesis import Genesis, Parameters
from .quorum import ValidatorSet
from .rejection import Premature, Reason, Rejection
from .state import StateReader, StateView
from .tables import (
    ADMISSION_POOL,
    ATTENDANCE,
    MAX_UNBONDING,
    NEXT_RELEASE,
    OFFENCES,
    QUEUE,
    STAKES,
    VALIDATORS,
    Attendance,
    Attended,
    Offence,
    OffenceKind,
    Queue,
    Stake,
    Time,
    Tokens,
    Unbonding,
    Validators,
    current_attendance,
    current_queue,
    current_validators,
    offence_key,
    previous_validators,
    stake_of,
)
from .types import MAX_VALIDATORS, AccountId, TransactionId
from .workspace import EventKind, Workspace

SLASHED_PARTS = 2
"""One part in so many is slashed: half, as the protocol says."""


class Standing(StrEnum):
    """What an account's stake makes it; the text is stable."""

    NONE = "none"
    """Nothing at stake."""
    ACTIVE = "active"
    """A validator."""
    WAITING = "waiting"
    """Too little bonded, or too many others with more."""
    JAILED = "jailed"
    TOMBSTONED = "tombstoned"


def standing(reader: StateReader, account: AccountId) -> Standing:
    """Whether an account votes on the next block, and if not why."""
    stake = stake_of(reader, account)
    if stake.is_tombstoned:
        return Standing.TOMBSTONED
    if stake.jailed_until_ms is not None:
        return Standing.JAILED
    if account in current_validators(reader):
        return Standing.ACTIVE
    return Standing.WAITING if stake.total else Standing.NONE


def genesis_stakes(view: StateView, genesis: Genesis) -> None:
    """Put the first validators' stake into a state."""
    for validator in genesis.validators:
        STAKES.put(view, validator.account, Stake(validator.stake, (), None, False))
    members = tuple(Attended(validator.account, b"") for validator in genesis.validators)
    ATTENDANCE.put(view, Attendance.of((), members))


def is_eligible(stake: Stake, parameters: Parameters) -> bool:
    """Whether an account with this stake may be a validator."""
    return stake.bonded >= parameters.minimum_stake and stake.jailed_until_ms is None and not stake.is_tombstoned


def begin_block(work: Workspace, last_commit: Commit) -> None:
    """Step 1 of a block, for stake: free what has unbonded, count attendance, jail who is never there."""
    _release(work)
    _attend(work, last_commit)
    refresh_validators(work)


def refresh_validators(work: Workspace) -> None:
    """Choose the validators again if a stake has changed; who is none any more leaves the packing queue."""
    if not work.are_stakes_changed:
        return
    work.are_stakes_changed = False
    parameters = work.genesis.parameters
    eligible = [
        Validator(AccountId(account), stake.bonded)
        for account, stake in STAKES.scan(work.view)
        if is_eligible(stake, parameters)
    ]
    chosen = sorted(eligible, key=lambda validator: (-validator.stake, validator.account))[:MAX_VALIDATORS]
    validators = ValidatorSet(tuple(chosen))
    assert len(validators), "every change of a stake leaves a validator"
    VALIDATORS.put(work.view, Validators(validators.validators))
    queue = current_queue(work.view)
    left = tuple(account for account in queue if account in validators)
    if left != queue:
        QUEUE.put(work.view, Queue(left))


def check_bond(work: Workspace, sender: AccountId) -> None:
    """Check that an account may bond; raises `Rejection`: TOMBSTONED."""
    if stake_of(work.view, sender).is_tombstoned:
        raise Rejection(Reason.TOMBSTONED, account=sender)


def bond(work: Workspace, sender: AccountId, amount: int) -> None:
    """Add to a stake what the caller has taken from the free balance."""
    stake = stake_of(work.view, sender)
    work.put_stake(sender, replace(stake, bonded=stake.bonded + amount))


def check_unbond(work: Workspace, sender: AccountId, amount: int) -> None:
    """Check that an account may unbond.

    Raises:
        Rejection: INSUFFICIENT_STAKE, LIMIT (too many amounts unbond already), LAST_VALIDATOR.
    """
    stake = stake_of(work.view, sender)
    if stake.bonded < amount:
        raise Rejection(Reason.INSUFFICIENT_STAKE, bonded=stake.bonded, needed=amount)
    if len(stake.unbonding) >= MAX_UNBONDING:
        raise Rejection(Reason.LIMIT, unbonding=len(stake.unbonding), until_ms=stake.unbonding[0].release_ms)
    if not _leaves_validators(work, sender, replace(stake, bonded=stake.bonded - amount)):
        raise Rejection(Reason.LAST_VALIDATOR, account=sender, minimum=work.genesis.parameters.minimum_stake)


def unbond(work: Workspace, sender: AccountId, amount: int) -> None:
    """Begin to free a part of a stake."""
    stake = stake_of(work.view, sender)
    release_ms = work.context.time_ms + work.genesis.parameters.unbonding_ms
    entry = Unbonding(amount, release_ms)
    work.put_stake(sender, replace(stake, bonded=stake.bonded - amount, unbonding=(*stake.unbonding, entry)))
    if NEXT_RELEASE.get(work.view) is None:
        NEXT_RELEASE.put(work.view, Time(release_ms))


def check_unjail(work: Workspace, sender: AccountId) -> None:
    """Check that an account may leave jail.

    Raises:
        Premature: JAILED, its time isn't over.
        Rejection: TOMBSTONED, NOT_JAILED.
    """
    stake = stake_of(work.view, sender)
    if stake.is_tombstoned:
        raise Rejection(Reason.TOMBSTONED, account=sender)
    if stake.jailed_until_ms is None:
        raise Rejection(Reason.NOT_JAILED, account=sender)
    if work.context.time_ms < stake.jailed_until_ms:
        raise Premature(Reason.JAILED, until_ms=stake.jailed_until_ms, time_ms=work.context.time_ms)


def unjail(work: Workspace, sender: AccountId) -> None:
    """End an account's time in jail."""
    work.put_stake(sender, replace(stake_of(work.view, sender), jailed_until_ms=None))
    work.note(EventKind.UNJAILED, account=sender)


def check_tombstone(work: Workspace, offender: AccountId) -> None:
    """Check that an account can be punished for a double signature.

    Raises:
        Premature: LAST_VALIDATOR, nobody else could make blocks.
        Rejection: TOMBSTONED (it was punished before), INSUFFICIENT_STAKE (it has nothing at stake).
    """
    stake = stake_of(work.view, offender)
    if stake.is_tombstoned:
        raise Rejection(Reason.TOMBSTONED, account=offender)
    if not stake.total:
        raise Rejection(Reason.INSUFFICIENT_STAKE, account=offender, bonded=0, unbonding=0)
    if not _leaves_validators(work, offender, replace(stake, is_tombstoned=True)):
        raise Premature(Reason.LAST_VALIDATOR, account=offender)


def tombstone(work: Workspace, offender: AccountId, evidence: TransactionId) -> None:
    """Punish a double signature, once and for ever: slash, and take the account out of agreement and queue."""
    stake = stake_of(work.view, offender)
    _slash(work, offender, replace(stake, is_tombstoned=True), Offence(OffenceKind.DOUBLE_SIGN, 0, 0, evidence))
    work.note(EventKind.TOMBSTONED, account=offender)


def slash_aggregator(work: Workspace, aggregator: AccountId, aggregate: TransactionId) -> None:
    """Punish an exact fault of an aggregator. The last validator isn't punished below what keeps it one."""
    stake = stake_of(work.view, aggregator)
    if stake.total and _leaves_validators(work, aggregator, _halved(stake)):
        _slash(work, aggregator, stake, Offence(OffenceKind.WRONG_OUTPUT, 0, 0, aggregate))


def _slash(work: Workspace, account: AccountId, stake: Stake, offence: Offence) -> None:
    """Move half of what is bonded and unbonding into the admission pool: no token is lost, and nobody gains one."""
    left = _halved(stake)
    slashed = stake.total - left.total
    work.put_stake(account, left)
    refresh_validators(work)
    pool = ADMISSION_POOL.get(work.view)
    assert pool is not None, "every state has an admission pool"
    ADMISSION_POOL.put(work.view, Tokens(pool.amount + slashed))
    key = offence_key(account, work.context.height, offence.kind)
    OFFENCES.put(work.view, key, replace(offence, time_ms=work.context.time_ms, slashed=slashed))
    work.note(EventKind.SLASHED, detail=f"{slashed} micro-tokens for {offence.kind.name}", account=account)


def _halved(stake: Stake) -> Stake:
    """What is left after slashing; an odd micro-token goes."""
    entries = tuple(replace(entry, amount=entry.amount // SLASHED_PARTS) for entry in stake.unbonding)
    return replace(stake, bonded=stake.bonded // SLASHED_PARTS, unbonding=entries)


def _leaves_validators(work: Workspace, account: AccountId, changed: Stake) -> bool:
    """Whether somebody may be a validator after an account's stake has changed."""
    parameters = work.genesis.parameters
    if is_eligible(changed, parameters) or not is_eligible(stake_of(work.view, account), parameters):
        return True
    return any(is_eligible(stake, parameters) for other, stake in STAKES.scan(work.view) if other != account)


def _release(work: Workspace) -> None:
    """Free what has unbonded for long enough. All stakes are looked through only when something is due."""
    due = NEXT_RELEASE.get(work.view)
    now_ms = work.context.time_ms
    if due is None or due.time_ms > now_ms:
        return
    waiting: list[int] = []
    for account, stake in STAKES.scan(work.view):
        ripe = sum(entry.amount for entry in stake.unbonding if entry.release_ms <= now_ms)
        left = tuple(entry for entry in stake.unbonding if entry.release_ms > now_ms)
        waiting += [entry.release_ms for entry in left]
        if left != stake.unbonding:
            work.put_stake(AccountId(account), replace(stake, unbonding=left))
            work.credit(AccountId(account), ripe)
    if waiting:
        NEXT_RELEASE.put(work.view, Time(min(waiting)))
    else:
        NEXT_RELEASE.delete(work.view)


def _attend(work: Workspace, last_commit: Commit) -> None:
    """Note who is missing in the last block's commit, and jail who missed too many.

    The validators of this block are counted that voted on the last one as well.
    """
    if last_commit.height == 0:
        return
    voters = previous_validators(work.view)
    present = {voters.validators[entry.index].account for entry in last_commit.signatures}
    absent = frozenset(account for account in voters.accounts if account not in present)
    before = current_attendance(work.view)
    known = {member.account: member.missed for member in before.members}
    window = work.genesis.parameters.attendance_window
    members = tuple(
        Attended(account, _shifted(known.get(account, b""), account in absent, window))
        for account in current_validators(work.view).accounts
    )
    attendance = Attendance.of((work.context.proposer, *before.recorders)[:window], members)
    ATTENDANCE.put(work.view, attendance)
    _jail_absent(work, attendance)


def _shifted(missed: bytes, is_absent: bool, window: int) -> bytes:
    """A bitmap with one more bit, of which the last `window` are kept, without leading zeros."""
    bits = (int.from_bytes(missed, "big") << 1 | is_absent) & ((1 << window) - 1)
    return bits.to_bytes((bits.bit_length() + 7) // 8, "big")


def _jail_absent(work: Workspace, attendance: Attendance) -> None:
    """Jail who missed too many commits, also by the word of those alone who can't all be lying.

    A proposer chooses which signatures above two thirds it puts into a block. Leaders are those of the packing queue,
    so a hostile queue could otherwise jail one honest validator after the other until it is a third of the rest. By
    the word of the others alone it must have missed more than anybody is forgiven: honest proposers, too, lack a
    precommit now and then.
    """
    parameters = work.genesis.parameters
    validators = current_validators(work.view)
    witnessed = min(parameters.missed_to_jail, parameters.attendance_window - parameters.missed_to_jail + 1)
    for member in attendance.members:
        if member.count < parameters.missed_to_jail:
            continue
        bits = int.from_bytes(member.missed, "big")
        recorded = Counter(proposer for age, proposer in enumerate(attendance.recorders) if bits >> age & 1)
        stake = stake_of(work.view, member.account)
        jailed = replace(stake, jailed_until_ms=work.context.time_ms + parameters.jail_ms)
        if _beyond_doubt(recorded, validators) >= witnessed and _leaves_validators(work, member.account, jailed):
            work.put_stake(member.account, jailed)
            work.note(EventKind.JAILED, detail=f"missed {member.count} commits", account=member.account)


def _beyond_doubt(recorded: Mapping[AccountId, int], validators: ValidatorSet) -> int:
    """How many misses are left of those that proposers recorded when any with a third of the stake are disbelieved.

    Most misses for their stake go first, of the last proposer as large a part as there is stake left: no choice of
    whole proposers leaves fewer (the fractional knapsack bounds the other).
    """
    doubted = validators.total // 3
    left = 0
    ranked = sorted(recorded, key=lambda account: (Fraction(validators.stake_of(account), recorded[account]), account))
    for account in ranked:
        stake, misses = validators.stake_of(account), recorded[account]
        if stake <= doubted:
            doubted -= stake
        elif validators.exceeds_third(stake):
            left += misses
        else:
            left += misses - misses * doubted // stake
            doubted = 0
    return left
