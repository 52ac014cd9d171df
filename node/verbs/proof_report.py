"""What a proof proves, as JSON with the keys of the other verbs and as lines for people, and what is wrong with one.

Apart from `proof`, which finds and writes files; apart from `inspection`, since a proof is checked without a node.
"""

from typing import Any

from bflnode.consensus.keys import account_text
from bflnode.consensus.proof_file import CheckedProof, Proven, ProvenBalance, ProvenModel, ProvenTransaction
from bflnode.consensus.record_json import record_to_json
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.node.aggregation import rule_text
from bflnode.node.amounts import tokens_text

SHOWN_FIELD = 160
"""Characters of a field of a transaction's body in a terminal: a similarity matrix has 130,000."""

REMEDIES = {
    Reason.EXPIRED: "stake of that time may be free again: get a newer block to trust, not from who gave the file,"
    " or say with --trusting-period (a time, or `any`) for how long you believe its validators",
    Reason.MALFORMED: "get the file again, it may be damaged",
    Reason.NOT_TRUSTED: "too few of the validators that you trust signed the later block: get a newer one to trust",
    Reason.TOO_LARGE: "no proof is as large as that",
    Reason.UNSUPPORTED: "check it with a later version of bflnode",
    Reason.WRONG_CHAIN: "it is of another chain, or doesn't start from the genesis",
    Reason.WRONG_HASH: "its blocks or validators are others than those that you trust",
    Reason.WRONG_HEIGHT: "ask for a proof made with --from and the height that you trust",
    Reason.WRONG_TIME: "see whether this machine's clock is right",
}


def refusal_text(rejection: Rejection) -> str:
    """The fault, with what to do where something can be done."""
    remedy = REMEDIES.get(rejection.reason)
    return str(rejection) if remedy is None else f"{rejection}; {remedy}"


def check_json(checked: CheckedProof, now_ms: int, unbonding_ms: int | None) -> dict[str, Any]:
    """What a check found: the fact, the block it is of, and what was trusted.

    Args:
        checked: the proof.
        now_ms: the reader's time.
        unbonding_ms: how long stake stays bound on this chain, where a trusted genesis says so.
    """
    header, trusted = checked.verified.header, checked.verified.trusted
    return {
        "kind": kind_of(checked.proven),
        "proven": proven_json(checked.proven),
        "chain_id": header.chain_id.hex(),
        "height": header.height,
        "block": header.id.hex(),
        "time_ms": header.time_ms,
        "age_ms": max(0, now_ms - header.time_ms),
        "trusted_height": trusted.height,
        "trusted_block": trusted.id.hex(),
        "trusted_age_ms": max(0, now_ms - trusted.time_ms),
        "unbonding_ms": unbonding_ms,
        "steps": checked.verified.steps,
        "model_file": None,
    }


def kind_of(proven: Proven) -> str:
    """The kind, by the name of the verb that makes such a proof."""
    names: dict[type[Proven], str] = {ProvenBalance: "balance", ProvenModel: "model", ProvenTransaction: "tx"}
    return names[type(proven)]


def proven_json(proven: Proven) -> dict[str, Any]:
    """The fact itself."""
    match proven:
        case ProvenBalance():
            return _balance_json(proven)
        case ProvenModel():
            return _model_json(proven)
        case ProvenTransaction():
            return _transaction_json(proven)


def _balance_json(proven: ProvenBalance) -> dict[str, Any]:
    record = proven.record
    return {
        "account": account_text(proven.account),
        "exists": record is not None,
        "balance": 0 if record is None else record.balance,
        "nonce": 0 if record is None else record.nonce,
    }


def _model_json(proven: ProvenModel) -> dict[str, Any]:
    client, settled, specification = proven.client, proven.settled, proven.task.specification
    return {
        "client": account_text(client.account),
        "model": proven.model.hex(),
        "output": proven.output.hex(),
        "task": settled.slot.task.hex(),
        "task_name": specification.name,
        "architecture": specification.architecture,
        "round": settled.slot.number,
        "attempt": settled.slot.attempt,
        "settled_height": settled.height,
        "settled_ms": settled.settled_header_ms,
        "cluster": client.cluster,
        "rule": rule_text(specification),
        "members": proven.members,
        "weight": list(proven.weight),
        "gross": client.gross,
        "fee": client.fee,
        "net": client.gross - client.fee,
        "approvals": proven.approvals,
    }


def _transaction_json(proven: ProvenTransaction) -> dict[str, Any]:
    transaction = proven.transaction
    return {
        "id": transaction.id.hex(),
        "kind": transaction.kind.name,
        "sender": account_text(transaction.sender),
        "nonce": transaction.nonce,
        "fee": transaction.fee,
        "body": record_to_json(transaction.body),
    }


def proven_facts(kind: str, proven: dict[str, Any]) -> list[tuple[str, object]]:
    """The fact in lines of name and value."""
    match kind:
        case "balance":
            said = f"balance {tokens_text(proven['balance'])}" if proven["exists"] else "there is no such account"
            return [("proven", said), ("account", proven["account"]), ("nonce", proven["nonce"])]
        case "model":
            return _model_facts(proven)
        case _:
            return [
                ("proven", f"transaction {proven['id']} is in the block"),
                ("kind", proven["kind"]),
                ("sender", proven["sender"]),
                *((f"  {name}", str(value)[:SHOWN_FIELD]) for name, value in proven["body"].items()),
            ]


def _model_facts(proven: dict[str, Any]) -> list[tuple[str, object]]:
    part, whole = proven["weight"]
    approvals = f"{proven['approvals']} of the committee found the aggregation good"
    return [
        ("proven", f"the client's model is in the global model of cluster {proven['cluster']}"),
        ("client", proven["client"]),
        ("its model", proven["model"]),
        ("global model", f"{proven['output']}, of {proven['members']} models by {proven['rule']}"),
        ("weight", f"{part} of {whole}"),
        ("payout", tokens_text(proven["net"])),
        ("learning round", f"{proven['round']} of task {proven['task_name']} ({proven['architecture']})"),
        ("settled", f"in block {proven['settled_height']}; {approvals}"),
    ]
