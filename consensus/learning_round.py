"""A learning round: its phases, its transactions, its deadlines.

    COMMIT -> REVEAL -> AVAILABLE -> AGGREGATE -> ATTEST -> settled
       each of them may end in VOID instead, which `settlement` turns into the next attempt

A block does three things to the round, in this order: `advance` moves its clock and makes the transitions that are due,
`apply` takes its transactions, `close_early` makes the transitions for which nobody has to be waited for.
How a round opens is in `registration`, how it ends in `settlement`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import dropwhile
from typing import assert_never

from .clustering import centroids, cluster, matrix_from_triangle
from .quorum import ValidatorSet, is_quorum
from .registration import open_next, tick
from .rejection import Premature, Reason, Rejection
from .settlement import salts_hash, settle, void
from .staking import slash_aggregator
from .tables import (
    MODELS,
    PARTICIPANTS,
    TASKS,
    SeenModel,
    current_beacon,
    current_validators,
    model_key,
    participant_key,
)
from .task import (
    Aggregation,
    Attestation,
    Availability,
    Committed,
    Deadlines,
    Exclusion,
    LearningRound,
    Phase,
    ProbeMode,
    Revealed,
    RoundClient,
    Task,
    TaskSpecification,
    TaskStatus,
)
from .transaction import (
    Aggregate,
    Attest,
    Available,
    Commit,
    Probe,
    ProbeOpening,
    Reveal,
    RoundBody,
    Slot,
    Transaction,
    model_commitment,
    probe_commitment,
)
from .types import AccountId, TransactionId
from .verdict import verdict_on
from .workspace import EventKind, Workspace

NO_AGGREGATOR = "no aggregator is left in line"


@dataclass(frozen=True, slots=True)
class _Rules:
    """What ends a phase: `expire` at its deadline, `close` as soon as `is_complete`.

    Once `is_ripe`, enough is there to go on, and the phase stays open for the grace period only.
    """

    duration_ms: Callable[[Deadlines], int]
    is_complete: Callable[[Workspace, LearningRound], bool]
    close: Callable[[Workspace, LearningRound], None]
    expire: Callable[[Workspace, LearningRound], None]
    is_ripe: Callable[[LearningRound], bool] | None = None


def advance(work: Workspace) -> None:
    """Step 1 of a block: move the clocks, by at most `max_step_ms`, and make the transitions that are due."""
    tick(work)
    current = work.round
    if current is None:
        return
    step_ms = min(work.context.time_ms - current.header_ms, work.genesis.parameters.max_step_ms)
    work.put_round(replace(current, header_ms=work.context.time_ms, clock_ms=current.clock_ms + step_ms))
    while (current := work.round) is not None and current.clock_ms >= current.deadline_ms:
        PHASES[current.phase].expire(work, current)


def apply(work: Workspace, transaction: Transaction, body: RoundBody) -> None:
    """Step 2 of a block: take one round transaction.

    Raises:
        Premature: it is for a later phase, attempt or learning round, or for an aggregator whose turn hasn't come.
        Rejection: it isn't allowed, with the reason.
    """
    sender = transaction.sender
    match body:
        case Probe():
            _probe(work, sender, body)
        case Commit():
            _commit(work, sender, body, transaction.id)
        case Reveal():
            _reveal(work, sender, body, transaction.id)
        case Available():
            _available(work, sender, body)
        case Aggregate():
            _aggregate(work, sender, body, transaction.id)
        case Attest():
            _attest(work, sender, body, transaction.id)
        case _:
            assert_never(body)


def close_early(work: Workspace) -> None:
    """Step 3 of a block: make all transitions that wait for nobody, then start grace periods."""
    while True:
        current = work.round
        if current is None:
            if not open_next(work):
                return
        elif PHASES[current.phase].is_complete(work, current):
            PHASES[current.phase].close(work, current)
        else:
            _start_grace(work, current)
            return


def dismiss(work: Workspace, account: AccountId) -> None:
    """Take a tombstoned account out of the line of aggregators; an aggregation that is there is judged as it is.

    Committee and clients stay as they were at OPEN: a verdict must not depend on who is punished meanwhile.
    """
    current = work.round
    if current is None:
        return
    is_done = current.aggregation is not None  # also where this very block brought it
    first = current.acting + is_done
    gone, waiting = current.line[:first], current.line[first:]
    left = tuple(member for member in waiting if member.account != account)
    if left == waiting:
        return
    if _specification(work, current).probe_mode is ProbeMode.AGGREGATOR and current.phase is not Phase.COMMIT:
        left = tuple(dropwhile(lambda member: member.probe is None, left))
    work.note(EventKind.AGGREGATOR_REPLACED, current.slot, "tombstoned", account=account)
    if not left and not is_done:
        _find_copies(work, current)
        void(work, current, NO_AGGREGATOR)
        return
    changed = replace(current, line=(*gone, *left))
    if current.phase is Phase.AGGREGATE and changed.aggregator != current.aggregator:
        _restart(work, changed)
    else:
        work.put_round(changed)


def _probe(work: Workspace, sender: AccountId, body: Probe) -> None:
    current = _find_round(work, sender, body, Phase.COMMIT)
    if _specification(work, current).probe_mode is not ProbeMode.AGGREGATOR:
        raise Rejection(Reason.UNSUPPORTED, fault="the task's probe is public")
    position = _line_position(current, sender)
    if current.line[position].probe is not None:
        raise Rejection(Reason.DUPLICATE, sender=sender)
    line = list(current.line)
    line[position] = replace(line[position], probe=body.commitment)
    work.put_round(replace(current, line=tuple(line)))


def _commit(work: Workspace, sender: AccountId, body: Commit, transaction: TransactionId) -> None:
    current = _find_round(work, sender, body, Phase.COMMIT)
    position = _client_position(current, sender)
    if current.clients[position].committed is not None:
        raise Rejection(Reason.DUPLICATE, sender=sender)
    order = sum(client.committed is not None for client in current.clients)
    committed = Committed(body.commitment, order, transaction)
    _put_client(work, current, position, replace(current.clients[position], committed=committed))


def _reveal(work: Workspace, sender: AccountId, body: Reveal, transaction: TransactionId) -> None:
    current = _find_round(work, sender, body, Phase.REVEAL)
    position = _client_position(current, sender)
    client = current.clients[position]
    if client.revealed is not None:
        raise Rejection(Reason.DUPLICATE, sender=sender)
    commitment = model_commitment(work.genesis.chain_id, body.slot, sender, body.model, body.salt)
    if client.committed is None or client.committed.commitment != commitment:
        raise Rejection(Reason.COMMITMENT_MISMATCH, sender=sender, model=body.model)
    expected_bytes = _specification(work, current).model_bytes
    if body.size != expected_bytes:
        raise Rejection(Reason.WRONG_SIZE, size_bytes=body.size, expected=expected_bytes)
    revealed = Revealed(body.model, body.size, body.salt, transaction)
    _put_client(work, current, position, replace(client, revealed=revealed))


def _available(work: Workspace, sender: AccountId, body: Available) -> None:
    current = _find_round(work, sender, body, Phase.AVAILABLE)
    _require_committee(current, sender)
    if any(vote.account == sender for vote in current.availability):
        raise Rejection(Reason.DUPLICATE, sender=sender)
    _check_bitmap(body.bitmap, len(current.clients))
    work.put_round(replace(current, availability=(*current.availability, Availability(sender, body.bitmap))))


def _aggregate(work: Workspace, sender: AccountId, body: Aggregate, transaction: TransactionId) -> None:
    """L1: integers and hashes. Everything that follows from the matrix is derived here, by every node."""
    current = _find_round(work, sender, body, Phase.AGGREGATE)
    position = _line_position(current, sender)
    if position != current.acting:
        kind = Premature if position > current.acting else Rejection
        raise kind(Reason.NOT_AGGREGATOR, sender=sender, acting=current.aggregator)
    if current.aggregation is not None:
        raise Rejection(Reason.DUPLICATE, sender=sender)
    specification = _specification(work, current)
    _check_opening(work, current, specification.probe_mode, body.opening)
    labels, representatives = _clustered(body.triangle, len(current.included), specification.clusters)
    if len(body.outputs) != len(representatives):
        raise Rejection(Reason.WRONG_OUTPUTS, outputs=len(body.outputs), clusters=len(representatives))
    aggregation = Aggregation(
        transaction=transaction,
        aggregator=sender,
        triangle=body.triangle,
        outputs=body.outputs,
        opening=body.opening,
        labels=labels,
        centroids=representatives,
    )
    work.put_round(replace(current, aggregation=aggregation))


def _attest(work: Workspace, sender: AccountId, body: Attest, transaction: TransactionId) -> None:
    current = _find_round(work, sender, body, Phase.ATTEST)
    assert current.aggregation is not None, "ATTEST follows an aggregation"
    _require_committee(current, sender)
    if body.aggregate != current.aggregation.transaction:
        raise Rejection(Reason.WRONG_AGGREGATE, aggregate=body.aggregate, current=current.aggregation.transaction)
    if any(vote.account == sender for vote in current.attestations):
        raise Rejection(Reason.DUPLICATE, sender=sender)
    _check_bitmap(body.flags, len(current.included))
    attestation = Attestation(sender, body.fault, body.flags, transaction)
    work.put_round(replace(current, attestations=(*current.attestations, attestation)))


def _find_round(work: Workspace, sender: AccountId, body: RoundBody, phase: Phase) -> LearningRound:
    """The running learning round, if it is the body's and in the phase that the body belongs to."""
    slot = body.slot
    task = TASKS.get(work.view, slot.task)
    if task is None:
        raise Rejection(Reason.UNKNOWN_TASK, task=slot.task)
    current = work.round
    if current is None or current.slot != slot:
        kind = Premature if _may_come(work, task, slot, sender, body) else Rejection
        raise kind(Reason.WRONG_ROUND, round=slot.number, attempt=slot.attempt, expected=f"{task.round}.{task.attempt}")
    if current.phase is not phase:
        kind = Premature if current.phase < phase else Rejection
        raise kind(Reason.WRONG_PHASE, phase=current.phase.name, expected=phase.name)
    return current


def _may_come(work: Workspace, task: Task, slot: Slot, sender: AccountId, body: RoundBody) -> bool:
    """Whether a slot is soon to come and the sender one who may have something to say in it."""
    if task.status not in (TaskStatus.REGISTRATION, TaskStatus.RUNNING):
        return False
    is_later = (slot.number, slot.attempt) >= (task.round, task.attempt)
    if not is_later or slot.number > task.round + 1:
        return False
    if isinstance(body, (Commit, Reveal)):
        return PARTICIPANTS.get(work.view, participant_key(task.id, sender)) is not None
    return sender in current_validators(work.view)


def _specification(work: Workspace, current: LearningRound) -> TaskSpecification:
    return work.task(current.slot.task).specification


def _client_position(current: LearningRound, sender: AccountId) -> int:
    position = current.position_of(sender)
    if position is None:
        raise Rejection(Reason.NOT_PARTICIPANT, sender=sender)
    return position


def _line_position(current: LearningRound, sender: AccountId) -> int:
    for position, member in enumerate(current.line):
        if member.account == sender:
            return position
    raise Rejection(Reason.NOT_AGGREGATOR, sender=sender, acting=current.aggregator)


def _require_committee(current: LearningRound, sender: AccountId) -> None:
    if all(member.account != sender for member in current.committee):
        raise Rejection(Reason.NOT_COMMITTEE, sender=sender)


def _put_client(work: Workspace, current: LearningRound, position: int, client: RoundClient) -> None:
    clients = (*current.clients[:position], client, *current.clients[position + 1 :])
    work.put_round(replace(current, clients=clients))


def _check_bitmap(bitmap: bytes, count: int) -> None:
    """One bit for each of `count` items, least significant first, and zeros up to the next whole byte."""
    if len(bitmap) != (count + 7) // 8 or int.from_bytes(bitmap, "little") >> count:
        raise Rejection(Reason.WRONG_SIZE, bitmap=bitmap, bits=count)


def _check_opening(work: Workspace, current: LearningRound, mode: ProbeMode, opening: ProbeOpening | None) -> None:
    if mode is ProbeMode.PUBLIC:
        if opening is not None:
            raise Rejection(Reason.UNSUPPORTED, fault="the task's probe is public")
        return
    member = current.line[current.acting]
    if opening is None:
        raise Rejection(Reason.COMMITMENT_MISMATCH, sender=member.account, fault="PROBE isn't opened")
    commitment = probe_commitment(work.genesis.chain_id, current.slot, member.account, opening.samples, opening.salt)
    if commitment != member.probe:
        raise Rejection(Reason.COMMITMENT_MISMATCH, sender=member.account, samples=opening.samples)


@lru_cache(maxsize=4)
def _clustered(triangle: bytes, clients: int, clusters: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Labels and centroids of a matrix. Remembered: one AGGREGATE is checked, proposed, validated and applied."""
    matrix = matrix_from_triangle(triangle, clients)
    labels = cluster(matrix, clusters)
    return labels, centroids(matrix, labels)


def _enter(work: Workspace, current: LearningRound, phase: Phase) -> None:
    """Begin a phase."""
    work.note(EventKind.PHASE_CHANGED, current.slot, phase.name)
    _restart(work, replace(current, phase=phase))


def _restart(work: Workspace, current: LearningRound) -> None:
    """Give the phase its whole time from now on."""
    duration_ms = PHASES[current.phase].duration_ms(_specification(work, current).deadlines)
    work.put_round(
        replace(
            current,
            opened_ms=current.clock_ms,
            deadline_ms=current.clock_ms + duration_ms,
            is_extended=False,
            is_in_grace=False,
        )
    )


def _extend_or_void(work: Workspace, current: LearningRound, why: str) -> None:
    """Give a phase its time once more; the second time the attempt is void."""
    if current.is_extended:
        void(work, current, why)
        return
    duration_ms = PHASES[current.phase].duration_ms(_specification(work, current).deadlines)
    work.put_round(replace(current, deadline_ms=current.clock_ms + duration_ms, is_extended=True))
    work.note(EventKind.PHASE_EXTENDED, current.slot, current.phase.name)


def _start_grace(work: Workspace, current: LearningRound) -> None:
    """Shorten a phase that is ripe."""
    is_ripe = PHASES[current.phase].is_ripe
    if is_ripe is None or current.is_in_grace or not is_ripe(current):
        return
    deadlines = _specification(work, current).deadlines
    elapsed_ms = current.clock_ms - current.opened_ms
    grace_ms = max(deadlines.grace_floor_ms, elapsed_ms * deadlines.grace_permille // 1000)
    deadline_ms = min(current.deadline_ms, current.clock_ms + grace_ms)
    work.put_round(replace(current, is_in_grace=True, deadline_ms=deadline_ms))
    work.note(EventKind.GRACE_STARTED, current.slot, current.phase.name)


def _most_have(current: LearningRound, has_acted: Callable[[RoundClient], bool]) -> bool:
    """Whether clients with more than 2/3 of the samples that the phase waits for have acted."""
    awaited = [client for client in current.clients if client.is_candidate]
    acted = sum(client.samples for client in awaited if has_acted(client))
    return is_quorum(acted, sum(client.samples for client in awaited))


def _exclude(
    current: LearningRound, exclusion: Exclusion, is_excluded: Callable[[int, RoundClient], bool]
) -> LearningRound:
    clients = (
        replace(client, exclusion=exclusion) if client.is_candidate and is_excluded(position, client) else client
        for position, client in enumerate(current.clients)
    )
    return replace(current, clients=tuple(clients))


def _go_on(work: Workspace, current: LearningRound, phase: Phase, why: str) -> None:
    """Begin the next phase with the clients that are left; too few of them make the attempt void."""
    left = sum(client.is_candidate for client in current.clients)
    if left < _specification(work, current).clients_min:
        void(work, current, f"only {left} clients {why}")
    else:
        _enter(work, current, phase)


def _has_committed(client: RoundClient) -> bool:
    return client.committed is not None


def _has_revealed(client: RoundClient) -> bool:
    return client.revealed is not None


def _has_probe(work: Workspace, current: LearningRound) -> bool:
    mode = _specification(work, current).probe_mode
    return mode is ProbeMode.PUBLIC or current.line[current.acting].probe is not None


def _all_committed(work: Workspace, current: LearningRound) -> bool:
    return all(map(_has_committed, current.clients)) and _has_probe(work, current)


def _close_commit(work: Workspace, current: LearningRound) -> None:
    left = _exclude(current, Exclusion.NO_COMMIT, lambda _, client: not _has_committed(client))
    _go_on(work, left, Phase.REVEAL, "committed")


def _expire_commit(work: Workspace, current: LearningRound) -> None:
    if _has_probe(work, current):
        _close_commit(work, current)
        return
    replaced = _replace_aggregator(work, current, "no PROBE")
    if replaced is not None and _has_probe(work, replaced):
        _close_commit(work, replaced)


def _all_revealed(_: Workspace, current: LearningRound) -> bool:
    return all(_has_revealed(client) for client in current.clients if client.is_candidate)


def _close_reveal(work: Workspace, current: LearningRound) -> None:
    """Decide who goes on: who revealed a model of its own. From here on the probe can be known."""
    left = _exclude(current, Exclusion.NO_REVEAL, lambda _, client: not _has_revealed(client))
    copies = _find_copies(work, left)
    left = _exclude(left, Exclusion.COPY, lambda position, _: position in copies)
    seed = salts_hash("probe", current_beacon(work.view), left)
    _go_on(work, replace(left, probe_seed=seed), Phase.AVAILABLE, "revealed a model of their own")


def _find_copies(work: Workspace, current: LearningRound) -> frozenset[int]:
    """Positions of clients whose model was seen before; remembers those of the others that are revealed.

    Seen is a base or output model or another client's of the last `copy_memory_rounds` learning rounds; the client's
    own counts unless it is of a void attempt of this round. Of equal models the one committed first isn't a copy.
    """
    slot = current.slot
    copies = set()
    candidates = [
        position for position, client in enumerate(current.clients) if client.is_candidate and _has_revealed(client)
    ]
    for position in sorted(candidates, key=lambda index: _commit_order(current.clients[index])):
        client = current.clients[position]
        assert client.revealed is not None, "a candidate here has revealed"
        key = model_key(slot.task, client.revealed.model)
        seen = MODELS.get(work.view, key)
        is_own = seen is not None and (seen.owner, seen.number) == (client.account, slot.number)
        if seen is None or is_own or slot.number - seen.number > work.genesis.parameters.copy_memory_rounds:
            MODELS.put(work.view, key, SeenModel(client.account, slot.number))
        else:
            copies.add(position)
    return frozenset(copies)


def _commit_order(client: RoundClient) -> int:
    assert client.committed is not None, "a candidate has committed"
    return client.committed.order


def _availability_quorum(_: Workspace, current: LearningRound) -> bool:
    committee = ValidatorSet(current.committee)
    return committee.is_quorum(committee.weight_of(vote.account for vote in current.availability))


def _close_available(work: Workspace, current: LearningRound) -> None:
    """Include the models that more than a third of the committee's stake has: then an honest member has them."""
    committee = ValidatorSet(current.committee)

    def is_unavailable(position: int, _: RoundClient) -> bool:
        byte, bit = divmod(position, 8)
        holders = (vote.account for vote in current.availability if vote.bitmap[byte] >> bit & 1)
        return not committee.exceeds_third(committee.weight_of(holders))

    left = _exclude(current, Exclusion.UNAVAILABLE, is_unavailable)
    included = tuple(position for position, client in enumerate(left.clients) if client.is_candidate)
    _go_on(work, replace(left, included=included), Phase.AGGREGATE, "have an available model")


def _expire_available(work: Workspace, current: LearningRound) -> None:
    _extend_or_void(work, current, "the committee did not vote on the models")


def _is_aggregated(_: Workspace, current: LearningRound) -> bool:
    return current.aggregation is not None


def _close_aggregate(work: Workspace, current: LearningRound) -> None:
    _enter(work, current, Phase.ATTEST)


def _expire_aggregate(work: Workspace, current: LearningRound) -> None:
    _next_aggregator(work, current, "no AGGREGATE")


def _next_aggregator(work: Workspace, current: LearningRound, why: str) -> None:
    """Hand the job on, with a whole window, to the next in line that can do it: a missing PROBE is a miss too."""
    replaced = _replace_aggregator(work, current, why)
    while replaced is not None and not _has_probe(work, replaced):
        replaced = _replace_aggregator(work, replaced, "no PROBE")


def _replace_aggregator(work: Workspace, current: LearningRound, why: str) -> LearningRound | None:
    """Take the acting aggregator out of the queue; its job goes to the next in line, or the attempt is void (None)."""
    work.leave_queue(current.aggregator)
    work.note(EventKind.AGGREGATOR_REPLACED, current.slot, why, account=current.aggregator)
    if current.acting + 1 == len(current.line):
        void(work, current, NO_AGGREGATOR)
        return None
    _restart(work, replace(current, acting=current.acting + 1))
    return work.round


def _is_judged(_: Workspace, current: LearningRound) -> bool:
    return verdict_on(current).is_final


def _is_condemned(current: LearningRound) -> bool:
    return verdict_on(current).is_bad


def _close_attest(work: Workspace, current: LearningRound) -> None:
    verdict = verdict_on(current)
    if verdict.is_good:
        settle(work, current)
        return
    assert current.aggregation is not None, "ATTEST follows an aggregation"
    if verdict.is_exact_fault:
        slash_aggregator(work, current.aggregation.aggregator, current.aggregation.transaction)
    _next_aggregator(
        work,
        replace(current, phase=Phase.AGGREGATE, aggregation=None, attestations=()),
        "its AGGREGATE was attested as bad",
    )


def _expire_attest(work: Workspace, current: LearningRound) -> None:
    if _is_condemned(current):
        _close_attest(work, current)
    else:
        _extend_or_void(work, current, "the committee did not agree about the aggregation")


PHASES = {
    Phase.COMMIT: _Rules(
        duration_ms=lambda deadlines: deadlines.commit_ms,
        is_complete=_all_committed,
        close=_close_commit,
        expire=_expire_commit,
        is_ripe=lambda current: _most_have(current, _has_committed),
    ),
    Phase.REVEAL: _Rules(
        duration_ms=lambda deadlines: deadlines.reveal_ms,
        is_complete=_all_revealed,
        close=_close_reveal,
        expire=_close_reveal,
        is_ripe=lambda current: _most_have(current, _has_revealed),
    ),
    Phase.AVAILABLE: _Rules(
        duration_ms=lambda deadlines: deadlines.available_ms,
        is_complete=_availability_quorum,
        close=_close_available,
        expire=_expire_available,
    ),
    Phase.AGGREGATE: _Rules(
        duration_ms=lambda deadlines: deadlines.aggregate_ms,
        is_complete=_is_aggregated,
        close=_close_aggregate,
        expire=_expire_aggregate,
    ),
    Phase.ATTEST: _Rules(
        duration_ms=lambda deadlines: deadlines.attest_ms,
        is_complete=_is_judged,
        close=_close_attest,
        expire=_expire_attest,
        is_ripe=_is_condemned,
    ),
}
"""What ends each phase, and how."""
