"""Learning rounds as JSON-ready values: their phases, clients, clusters and rewards, and why a reward is what it is.

What belongs here: turning records of state into answers and sentences. Finding the records is `inspection`'s; the rules
are `bflnode.consensus`'.
"""

import struct
from fractions import Fraction
from typing import Any

from bflnode.consensus.keys import account_text
from bflnode.consensus.rewards import Payout, Ratio, bfln_payout
from bflnode.consensus.task import (
    Aggregation,
    Exclusion,
    LearningRound,
    Participant,
    RoundClient,
    SettledClient,
    SettledRound,
    Task,
    held_classes,
)
from bflnode.consensus.transaction import Available, Fault
from bflnode.consensus.types import TOKEN, AccountId, BlobId, TransactionId
from bflnode.node.aggregation import rule_text
from bflnode.node.amounts import plain_tokens
from bflnode.storage.chain_store import ChainStore

MAX_BLOCKS_SEARCHED = 500
"""Blocks of a round that are searched for votes on a model: a round has about five, more only after long waits."""

REASONS = {
    Exclusion.NO_COMMIT: (
        "It sent no COMMIT before the phase closed: it was offline, its training failed, or it was among the last "
        "while clients with more than two thirds of the samples had committed."
    ),
    Exclusion.NO_REVEAL: "It sent a COMMIT but no valid REVEAL before the phase closed; that costs a reputation point.",
    Exclusion.COPY: "The model it revealed was not its own; that costs a reputation point.",
    Exclusion.UNAVAILABLE: (
        "It revealed a model, but members with no more than a third of the committee's stake could fetch it; "
        "that costs a reputation point."
    ),
}
"""Why a client was not paid, in words."""


def verification_text(validators: int) -> str:
    """What is verified in a round, and by whom."""
    return (
        f"every committee member re-executes every aggregation (the committee is all {validators} validators); "
        "every node executes every block"
    )


def round_json(found: LearningRound | SettledRound, task: Task) -> dict[str, Any]:
    """A learning round with all its clients."""
    common = {
        "task": task.id.hex(),
        "task_name": task.specification.name,
        "number": found.slot.number,
        "rounds": task.specification.rounds,
        "rule": rule_text(task.specification),
        "attempt": found.slot.attempt,
        "status": _status(found),
        "opened_height": found.opened_height,
        "opened_ms": found.opened_header_ms,
        "clients": [_client_json(found, position) for position in range(len(found.clients))],
        "included": len(found.included),
        "probe_seed": found.probe_seed.hex(),
        "clusters": [] if found.aggregation is None else _clusters(found, found.aggregation),
        "aggregate": None if found.aggregation is None else found.aggregation.transaction.hex(),
        "attestations": [
            {
                "account": account_text(vote.account),
                "fault": vote.fault.name.lower(),
                "transaction": vote.transaction.hex(),
            }
            for vote in found.attestations
        ],
    }
    if isinstance(found, LearningRound):
        return {
            **common,
            "phase": found.phase.name.lower(),
            "deadline_ms": found.deadline_header_ms,
            "is_in_grace": found.is_in_grace,
            "is_extended": found.is_extended,
            "aggregator": account_text(found.aggregator),
            "line": [account_text(member.account) for member in found.line],
            "committee": [account_text(member.account) for member in found.committee],
            "voted_available": [account_text(vote.account) for vote in found.availability],
        }
    return {
        **common,
        "phase": "settled",
        "height": found.height,
        "settled_ms": found.settled_header_ms,
        "duration_ms": found.settled_header_ms - found.opened_header_ms,
        "aggregator": None if found.aggregation is None else account_text(found.aggregation.aggregator),
        "reward": found.reward,
        "aggregator_income": found.aggregator_income,
        "aggregator_balance_before": found.aggregator_balance_before,
    }


def round_line(settled: SettledRound) -> dict[str, Any]:
    """A settled learning round in a list."""
    aggregation = settled.aggregation
    return {
        "number": settled.slot.number,
        "attempt": settled.slot.attempt,
        "status": _status(settled),
        "height": settled.height,
        "opened_ms": settled.opened_header_ms,
        "settled_ms": settled.settled_header_ms,
        "duration_ms": settled.settled_header_ms - settled.opened_header_ms,
        "clients": len(settled.clients),
        "included": len(settled.included) if aggregation else 0,
        "clusters": []
        if aggregation is None
        else [len(cluster["members"]) for cluster in _clusters(settled, aggregation)],
        "aggregator": None if aggregation is None else account_text(aggregation.aggregator),
        "reward": settled.reward,
        "aggregate": None if aggregation is None else aggregation.transaction.hex(),
    }


def clusters_json(found: LearningRound | SettledRound, aggregation: Aggregation) -> dict[str, Any]:
    """Clusters with their members, and the similarity matrix in units of 1e-4."""
    accounts = [account_text(found.clients[position].account) for position in found.included]
    return {
        "task": found.slot.task.hex(),
        "number": found.slot.number,
        "attempt": found.slot.attempt,
        "clients": accounts,
        "labels": list(aggregation.labels),
        "clusters": _clusters(found, aggregation),
        "similarities": _matrix(aggregation.triangle, len(accounts)),
        "aggregator": account_text(aggregation.aggregator),
        "aggregate": aggregation.transaction.hex(),
    }


def rewards_json(settled: SettledRound, task: Task) -> dict[str, Any]:
    """Who got what in a settled learning round."""
    rows: list[dict[str, Any]] = []
    for position, client in enumerate(settled.clients):
        income = _income(settled, client.account)
        rows.append(
            {
                "account": account_text(client.account),
                "included": _is_included(settled, position),
                "exclusion": client.exclusion.name.lower(),
                "cluster": None if client.cluster < 0 else client.cluster,
                "gross": client.gross,
                "fee": client.fee,
                "net": client.gross - client.fee,
                "aggregator_income": income,
                "balance_before": client.balance_before,
                "balance_after": client.balance_before + client.gross - client.fee + income,
            }
        )
    aggregation = settled.aggregation
    return {
        "task": task.id.hex(),
        "number": settled.slot.number,
        "attempt": settled.slot.attempt,
        "height": settled.height,
        "status": _status(settled),
        "reward": settled.reward,
        "aggregator": None if aggregation is None else account_text(aggregation.aggregator),
        "aggregator_income": settled.aggregator_income,
        "paid": sum(row["net"] for row in rows) + settled.aggregator_income,
        "clients": rows,
    }


def explain(
    store: ChainStore,
    found: LearningRound | SettledRound,
    task: Task,
    account: AccountId,
    participant: Participant | None,
) -> dict[str, Any]:
    """Why an account got what it got in a learning round.

    Args:
        store: to find the transactions that show it.
        found: the round.
        task: its task.
        account: whose reward.
        participant: its registration today, if any.
    """
    clients: tuple[RoundClient | SettledClient, ...] = found.clients
    position = next((index for index, client in enumerate(clients) if client.account == account), None)
    head = {
        "task": task.id.hex(),
        "number": found.slot.number,
        "attempt": found.slot.attempt,
        "status": _status(found),
        "client": account_text(account),
        "in_snapshot": position is not None,
    }
    if isinstance(found, LearningRound):
        return {**head, "net": None, "explanation": [*_progress(found, position)]}
    income = _income(found, account)
    settled_height = found.height
    if position is None:
        before = found.aggregator_balance_before if income else store.balance_at(account, settled_height - 1)
        sentences = [*_why_absent(found, participant), *_aggregator_sentences(found, income)]
        amounts = {"gross": 0, "fee": 0, "net": 0, "aggregator_income": income, "included": False}
        return {
            **head,
            **amounts,
            "balance_before": before,
            "balance_after": before + income,
            "transactions": _transactions(store, found, None),
            "explanation": sentences,
        }
    client = found.clients[position]
    net = client.gross - client.fee
    return {
        **head,
        "included": _is_included(found, position),
        "exclusion": client.exclusion.name.lower(),
        **_share(found, task, position),
        "gross": client.gross,
        "fee": client.fee,
        "net": net,
        "aggregator_income": income,
        "balance_before": client.balance_before,
        "balance_after": client.balance_before + net + income,
        "transactions": _transactions(store, found, client),
        "explanation": [
            *_client_sentences(store, found, task, position),
            *_aggregator_sentences(found, income),
            f"Its balance went from {plain_tokens(client.balance_before)} to "
            f"{plain_tokens(client.balance_before + net + income)} tokens in block {settled_height}.",
        ],
    }


def _status(found: LearningRound | SettledRound) -> str:
    if isinstance(found, LearningRound):
        return "running"
    return "void" if found.aggregation is None else "settled"


def _is_included(found: LearningRound | SettledRound, position: int) -> bool:
    return found.aggregation is not None and position in found.included


def _income(settled: SettledRound, account: AccountId) -> int:
    is_aggregator = settled.aggregation is not None and settled.aggregation.aggregator == account
    return settled.aggregator_income if is_aggregator else 0


def _client_json(found: LearningRound | SettledRound, position: int) -> dict[str, Any]:
    client: RoundClient | SettledClient = found.clients[position]
    label = None
    if found.aggregation is not None and position in found.included:
        label = found.aggregation.labels[found.included.index(position)]
    return {
        "account": account_text(client.account),
        "samples": client.samples,
        "classes": list(held_classes(client.classes)),
        "base": client.base.hex(),
        "exclusion": client.exclusion.name.lower(),
        "commit": None if client.committed is None else client.committed.transaction.hex(),
        "commit_order": None if client.committed is None else client.committed.order,
        "reveal": None if client.revealed is None else client.revealed.transaction.hex(),
        "model": None if client.revealed is None else client.revealed.model.hex(),
        "cluster": label,
    }


def _clusters(found: LearningRound | SettledRound, aggregation: Aggregation) -> list[dict[str, Any]]:
    accounts = [account_text(found.clients[position].account) for position in found.included]
    return [
        {
            "label": label,
            "size": aggregation.labels.count(label),
            "members": [name for name, own in zip(accounts, aggregation.labels, strict=True) if own == label],
            "centroid": accounts[centroid],
            "output": aggregation.outputs[label].hex(),
        }
        for label, centroid in enumerate(aggregation.centroids)
    ]


def _matrix(triangle: bytes, count: int) -> list[list[int]]:
    """The whole symmetric matrix out of its strict upper triangle, row by row, int16 big-endian."""
    entries = iter(struct.unpack(f">{len(triangle) // 2}h", triangle))
    matrix = [[10_000] * count for _ in range(count)]
    for row in range(count):
        for column in range(row + 1, count):
            matrix[row][column] = matrix[column][row] = next(entries)
    return matrix


def _payout(settled: SettledRound, task: Task) -> Payout | None:
    if settled.aggregation is None:
        return None
    return bfln_payout(settled.aggregation.labels, settled.reward, task.specification.rho)


def _share(settled: SettledRound, task: Task, position: int) -> dict[str, Any]:
    """The formula's terms for an included client (BFLN, eq. 7-9), and whether they give what was paid."""
    payout = _payout(settled, task)
    if payout is None or position not in settled.included:
        return {"cluster": None, "cluster_size": None, "kappa": None, "gamma": None, "matches_formula": None}
    own = payout.clients[settled.included.index(position)]
    client = settled.clients[position]
    return {
        "cluster": own.cluster,
        "cluster_size": own.cluster_size,
        "included_clients": len(settled.included),
        "rho": task.specification.rho,
        "reward": settled.reward,
        "kappa": _ratio_text(payout.kappa),
        "gamma": _ratio_text(own.gamma),
        "matches_formula": (own.gross, own.fee) == (client.gross, client.fee),
    }


def _ratio_text(ratio: Ratio) -> str:
    """An exact quotient of micro-tokens: it may be too large for a JSON number."""
    return f"{ratio.numerator}/{ratio.denominator}"


def _rounded_tokens(ratio: Ratio) -> str:
    return f"{float(Fraction(ratio.numerator, ratio.denominator * TOKEN)):.6f}"


def _client_sentences(store: ChainStore, settled: SettledRound, task: Task, position: int) -> list[str]:
    client = settled.clients[position]
    payout = _payout(settled, task)
    if payout is None or settled.aggregation is None:
        void = f"Every attempt of learning round {settled.slot.number} was void, so nobody was paid."
        why = REASONS.get(client.exclusion)
        return [void] if why is None else [void, f"In the last attempt: {why}"]
    if position not in settled.included:
        return [
            "It got nothing.",
            REASONS.get(client.exclusion, "Its model was not among the aggregated ones."),
            *_evidence(store, settled, task, position),
        ]
    own = payout.clients[settled.included.index(position)]
    sizes = [settled.aggregation.labels.count(label) for label in range(len(settled.aggregation.centroids))]
    rho = task.specification.rho
    weight = " + ".join(f"{size}^{rho}" for size in sizes)
    return [
        f"{plain_tokens(payout.reward)} tokens were divided among {len(settled.included)} clients whose revealed "
        f"models matched their commitments, in clusters of {_listed(sizes)}.",
        f"It was in cluster {own.cluster} with {own.cluster_size} members. "
        f"kappa = R / ({weight}) = {_rounded_tokens(payout.kappa)} tokens (eq. 8), so its cluster earned "
        f"Gamma({own.cluster_size}) = kappa * {own.cluster_size}^{rho} = {_rounded_tokens(own.gamma)} tokens (eq. 7) "
        f"and each member Gamma / {own.cluster_size} = {plain_tokens(own.gross)}, rounded down.",
        f"Each client pays the aggregator kappa / {len(settled.included)} = {plain_tokens(own.fee)} (eq. 9): "
        f"{plain_tokens(own.net)} tokens are left.",
    ]


def _evidence(store: ChainStore, settled: SettledRound, task: Task, position: int) -> list[str]:
    """What on the chain shows why a client was left out."""
    client = settled.clients[position]
    if client.exclusion is Exclusion.COPY and client.revealed is not None:
        return [_original(settled, task, client, client.revealed.model)]
    if client.exclusion is Exclusion.UNAVAILABLE:
        had, voted = _availability(store, settled, position)
        return [f"{had} of the {voted} committee members that voted had its model."]
    return []


def _original(settled: SettledRound, task: Task, client: SettledClient, model: BlobId) -> str:
    for other in settled.clients:
        if other.account != client.account and other.revealed is not None and other.revealed.model == model:
            return (
                f"Client {account_text(other.account)} revealed the same model {model.hex()} and had committed to it "
                f"first (COMMIT number {other.committed.order if other.committed else 0} against "
                f"{client.committed.order if client.committed else 0})."
            )
    same = " It is the very model it was given to train from." if model == client.base else ""
    return f"Model {model.hex()} was seen before in task {task.specification.name}.{same}"


def _availability(store: ChainStore, settled: SettledRound, position: int) -> tuple[int, int]:
    """How many AVAILABLE votes of the attempt name a client's model, out of how many."""
    had = voted = 0
    start = max(settled.opened_height, settled.height - MAX_BLOCKS_SEARCHED)
    for block in store.blocks(start, settled.height + 1):
        for transaction in block.transactions:
            body = transaction.body
            if isinstance(body, Available) and body.slot == settled.slot:
                byte, bit = divmod(position, 8)
                voted += 1
                had += body.bitmap[byte] >> bit & 1
    return had, voted


def _aggregator_sentences(settled: SettledRound, income: int) -> list[str]:
    if not income:
        return []
    return [
        f"As the aggregator it got {plain_tokens(income)} tokens: the fees of {len(settled.included)} clients and what "
        "rounding left."
    ]


def _why_absent(settled: SettledRound, participant: Participant | None) -> list[str]:
    opened = f"when learning round {settled.slot.number} opened in block {settled.opened_height}"
    if participant is None:
        return ["It got nothing: it never registered for this task."]
    left = (
        " Since then it has left, by its own wish or because it missed three rounds in a row." * participant.is_leaving
    )
    return [f"It got nothing as a client: it was not registered {opened}.{left}"]


def _progress(current: LearningRound, position: int | None) -> list[str]:
    sentences = [
        f"Learning round {current.slot.number} is in phase {current.phase.name}: rewards are paid when it settles."
    ]
    if position is None:
        return [*sentences, "It takes no part in this round: it was not registered when the round opened."]
    client = current.clients[position]
    if client.exclusion is not Exclusion.NONE:
        return [*sentences, f"It will get nothing. {REASONS[client.exclusion]}"]
    done = (
        "has revealed its model"
        if client.revealed
        else "has committed"
        if client.committed
        else "has not committed yet"
    )
    return [*sentences, f"So far it {done}."]


def _transactions(store: ChainStore, settled: SettledRound, client: SettledClient | None) -> dict[str, Any]:
    """The transactions on chain that show what happened, with their blocks."""

    def place(identifier: TransactionId) -> dict[str, Any]:
        stored = store.transaction(identifier)
        return {"id": identifier.hex(), "height": None if stored is None else stored.height}

    committed = None if client is None else client.committed
    revealed = None if client is None else client.revealed
    return {
        "commit": None if committed is None else place(committed.transaction),
        "reveal": None if revealed is None else place(revealed.transaction),
        "aggregate": None if settled.aggregation is None else place(settled.aggregation.transaction),
        "attestations": [
            {
                **place(vote.transaction),
                "account": account_text(vote.account),
                "verdict": "good" if vote.fault is Fault.NONE else vote.fault.name.lower(),
            }
            for vote in settled.attestations
        ],
    }


def _listed(sizes: list[int]) -> str:
    return ", ".join(map(str, sizes[:-1])) + (" and " if len(sizes) > 1 else "") + str(sizes[-1])
