"""How a learning round ends: settled and paid, or void and tried again.

The arithmetic of payouts is in `rewards`; when a round ends is decided in `learning_round`.
"""

from collections import Counter
from dataclasses import replace

from .hashing import tagged_hash
from .registration import end_task, largest_cluster, open_round
from .rewards import Payout, bfln_payout
from .tables import (
    BEACON,
    MODELS,
    PARTICIPANTS,
    QUEUE,
    SETTLED,
    Beacon,
    Queue,
    SeenModel,
    current_beacon,
    current_queue,
    current_validators,
    model_key,
    participant_key,
    settled_key,
)
from .task import (
    MAX_ATTEMPTS,
    MISSES_BEFORE_LEAVING,
    Aggregation,
    Exclusion,
    LearningRound,
    Participant,
    SettledClient,
    SettledRound,
    Task,
    TaskStatus,
)
from .types import AccountId, Hash
from .workspace import EventKind, Workspace

FAULTS = frozenset({Exclusion.NO_REVEAL, Exclusion.COPY, Exclusion.UNAVAILABLE})
"""What costs a client a point of reputation: it committed to a model and didn't deliver one of its own."""


def salts_hash(tag: str, beacon: Hash, current: LearningRound) -> Hash:
    """A hash over the last beacon and the salts revealed in a learning round, in key order of the clients."""
    salts = (client.revealed.salt for client in current.clients if client.revealed is not None)
    return tagged_hash(tag, beacon, *salts)


def void(work: Workspace, current: LearningRound, why: str) -> None:
    """End an attempt that pays nobody: open the next one with the same base models; after the last, cancel the task."""
    slot = current.slot
    work.note(EventKind.ROUND_VOID, slot, why)
    work.drop_round()
    _score(work, current, ())
    task = work.task(slot.task)
    if task.attempt + 1 < MAX_ATTEMPTS:
        open_round(work, replace(task, attempt=task.attempt + 1))
        return
    _archive(work, current, None, task.specification.reward)
    end_task(work, task, TaskStatus.CANCELLED)


def settle(work: Workspace, current: LearningRound) -> None:
    """SETTLE: pay from the escrow, update participants, queue, beacon and archive, and open the next learning round."""
    aggregation = current.aggregation
    assert aggregation is not None, "only an attested aggregation is settled"
    task = work.task(current.slot.task)
    specification = task.specification
    payout = bfln_payout(aggregation.labels, specification.reward, specification.rho)
    _archive(work, current, payout, specification.reward)
    for position, share in zip(current.included, payout.clients, strict=True):
        work.credit(current.clients[position].account, share.net)
    work.credit(aggregation.aggregator, payout.aggregator)
    task = replace(task, escrow=task.escrow - specification.reward)

    _score(work, current, current.included)
    task = _update_participants(work, current, aggregation, task)
    for output in aggregation.outputs:
        MODELS.put(work.view, model_key(task.id, output), SeenModel(None, current.slot.number))
    _forget_models(work, current)
    _update_queue(work, current, aggregation)
    BEACON.put(work.view, Beacon(salts_hash("beacon", current_beacon(work.view), current)))

    work.note(EventKind.ROUND_SETTLED, current.slot, f"{len(current.included)} models", account=aggregation.aggregator)
    work.drop_round()
    if task.round == specification.rounds:
        end_task(work, task, TaskStatus.DONE)
    else:
        open_round(work, replace(task, round=task.round + 1, attempt=0))


def _score(work: Workspace, current: LearningRound, paid: tuple[int, ...]) -> None:
    """Reputation from facts on chain: a point for an aggregated model, minus one for a commitment not kept."""
    for position, client in enumerate(current.clients):
        points = 1 if position in paid else -1 if client.exclusion in FAULTS else 0
        if points:
            key = participant_key(current.slot.task, client.account)
            participant = PARTICIPANTS.get(work.view, key)
            assert participant is not None, "participants are kept"
            PARTICIPANTS.put(work.view, key, replace(participant, reputation=participant.reputation + points))


def _update_participants(work: Workspace, current: LearningRound, aggregation: Aggregation, task: Task) -> Task:
    """Give everybody its next base model, and take out who missed too many rounds in a row."""
    bases = {
        current.clients[position].account: aggregation.outputs[label]
        for position, label in zip(current.included, aggregation.labels, strict=True)
    }
    newcomers = aggregation.outputs[largest_cluster(aggregation.labels)]
    missed = {client.account: client.exclusion is Exclusion.NO_COMMIT for client in current.clients}
    left = 0
    for key, participant in PARTICIPANTS.scan(work.view, task.id):
        updated = replace(participant, base=bases.get(participant.account, newcomers))
        if participant.account in missed:
            updated = _count_miss(updated, missed[participant.account])
        if updated.is_leaving and not participant.is_leaving:
            left += 1
            work.note(EventKind.CLIENT_LEFT, current.slot, "no COMMIT three times in a row", account=updated.account)
        PARTICIPANTS.put(work.view, key, updated)
    return replace(task, clients=task.clients - left)


def _count_miss(participant: Participant, has_missed: bool) -> Participant:
    misses = participant.misses + 1 if has_missed else 0
    if misses < MISSES_BEFORE_LEAVING or participant.is_leaving:
        return replace(participant, misses=min(misses, MISSES_BEFORE_LEAVING))
    return replace(participant, misses=misses, is_leaving=True)


def _forget_models(work: Workspace, current: LearningRound) -> None:
    """Forget the models that from the next learning round on tell no copy any more.

    They are those of one settled round, so a settlement does a bounded amount of work. What only its void attempts saw
    stays.
    """
    task, memory = current.slot.task, work.genesis.parameters.copy_memory_rounds
    last = current.slot.number - memory
    settled = SETTLED.get(work.view, settled_key(task, last)) if last > 0 else None
    if settled is None:
        return
    models = {client.base for client in settled.clients}
    models |= {client.revealed.model for client in settled.clients if client.revealed is not None}
    models |= set(settled.aggregation.outputs if settled.aggregation is not None else ())
    for model in sorted(models):
        seen = MODELS.get(work.view, model_key(task, model))
        if seen is not None and seen.number <= last:
            MODELS.delete(work.view, model_key(task, model))


def _update_queue(work: Workspace, current: LearningRound, aggregation: Aggregation) -> None:
    """Pop the aggregator; append this round's bonded centroids, larger cluster first, then by key, each once."""
    work.leave_queue(aggregation.aggregator)
    queue = current_queue(work.view)
    validators = current_validators(work.view)
    sizes = Counter(aggregation.labels)
    ranked: list[tuple[int, AccountId]] = []
    for label, centroid in enumerate(aggregation.centroids):
        account = current.clients[current.included[centroid]].account
        if account in validators:
            ranked.append((-sizes[label], account))
    QUEUE.put(work.view, Queue(tuple(dict.fromkeys((*queue, *(account for _, account in sorted(ranked)))))))


def _archive(work: Workspace, current: LearningRound, payout: Payout | None, reward: int) -> None:
    """Keep for ever what the round did; called before anything is paid. Without a payout every attempt was void."""
    shares = {} if payout is None else dict(zip(current.included, payout.clients, strict=True))
    clients = []
    for position, client in enumerate(current.clients):
        share = shares.get(position)
        clients.append(
            SettledClient(
                account=client.account,
                exclusion=client.exclusion,
                samples=client.samples,
                classes=client.classes,
                base=client.base,
                committed=client.committed,
                revealed=client.revealed,
                cluster=-1 if share is None else share.cluster,
                gross=0 if share is None else share.gross,
                fee=0 if share is None else share.fee,
                balance_before=work.balance(client.account),
            )
        )
    aggregation = None if payout is None else current.aggregation
    settled = SettledRound(
        slot=current.slot,
        height=work.context.height,
        opened_height=current.opened_height,
        opened_header_ms=current.opened_header_ms,
        settled_header_ms=work.context.time_ms,
        clients=tuple(clients),
        included=current.included,
        probe_seed=current.probe_seed,
        aggregation=aggregation,
        attestations=() if aggregation is None else current.attestations,
        reward=0 if payout is None else reward,
        aggregator_income=0 if payout is None else payout.aggregator,
        aggregator_balance_before=0 if aggregation is None else work.balance(aggregation.aggregator),
    )
    SETTLED.put(work.view, settled_key(current.slot.task, current.slot.number), settled)
