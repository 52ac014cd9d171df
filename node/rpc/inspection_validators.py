"""Stake, validators and offences of a chain as JSON-ready values, and what a person can do about a bad standing.

What belongs here: formatting what `inspection` was asked for. The rules are in `bflnode.consensus.staking`.
"""

from typing import Any, TypeAlias

from bflnode.consensus.genesis import Genesis
from bflnode.consensus.keys import account_text
from bflnode.consensus.record_json import record_to_json
from bflnode.consensus.staking import Standing, standing
from bflnode.consensus.state import StateReader
from bflnode.consensus.tables import (
    OFFENCES,
    STAKES,
    Offence,
    current_attendance,
    current_queue,
    current_validators,
    stake_of,
)
from bflnode.consensus.transaction import Evidence
from bflnode.consensus.types import AccountId, TransactionId
from bflnode.node.amounts import tokens_text
from bflnode.storage.chain_store import ChainStore

Json: TypeAlias = dict[str, Any]


def validator_json(genesis: Genesis, reader: StateReader, account: AccountId) -> Json:
    """An account as a validator, whether it is one or not.

    `index` is its place in commits, None outside the set; `missed` counts the commits of the last `window` without it.
    """
    validators, queue, stake = current_validators(reader), current_queue(reader), stake_of(reader, account)
    attended = next((member for member in current_attendance(reader).members if member.account == account), None)
    return {
        "index": validators.index_of(account),
        "account": account_text(account),
        "stake": stake.bonded,
        "standing": standing(reader, account).value,
        "votes": validators.stake_of(account),
        "share": validators.stake_of(account) / validators.total,
        "jailed": stake.jailed_until_ms is not None,
        "jailed_until_ms": stake.jailed_until_ms,
        "tombstoned": stake.is_tombstoned,
        "missed": 0 if attended is None else attended.count,
        "window": genesis.parameters.attendance_window,
        "unbonding": [{"amount": entry.amount, "release_ms": entry.release_ms} for entry in stake.unbonding],
        "queue_position": queue.index(account) if account in queue else None,
        "advice": advice(genesis, reader, account),
    }


def validators_json(genesis: Genesis, reader: StateReader, own: AccountId) -> list[Json]:
    """Who votes on the next block, in the order that commits use; then who has a stake and doesn't vote, by key."""
    voting = current_validators(reader).accounts
    others = [AccountId(key) for key, _ in STAKES.scan(reader) if AccountId(key) not in voting]
    return [
        {**validator_json(genesis, reader, account), "is_own": account == own} for account in (*voting, *sorted(others))
    ]


def offences_json(store: ChainStore, reader: StateReader) -> list[Json]:
    """All punishments, by account and height, with the messages that prove a double signature."""
    return [_offence_json(store, key, offence) for key, offence in OFFENCES.scan(reader)]


def advice(genesis: Genesis, reader: StateReader, account: AccountId) -> str:
    """What an account's standing means and what to do about it; empty where there is nothing to say."""
    stake, minimum = stake_of(reader, account), genesis.parameters.minimum_stake
    match standing(reader, account):
        case Standing.TOMBSTONED:
            return (
                "tombstoned: this account signed two different messages for one slot, lost half its stake and never "
                "votes again; `bflnode validator unbond AMOUNT` frees the rest, a new validator needs a new account"
            )
        case Standing.JAILED:
            return (
                f"jailed for missing {genesis.parameters.missed_to_jail} of {genesis.parameters.attendance_window} "
                "commits: it doesn't vote; once the node has caught up (`bflnode status`) and its time is over, send "
                "`bflnode validator unjail`"
            )
        case Standing.WAITING if stake.bonded < minimum:
            return (
                f"no validator: {tokens_text(stake.bonded)} bonded, at least {tokens_text(minimum)} are needed; add "
                "with `bflnode validator bond AMOUNT`"
            )
        case Standing.WAITING:
            return "no validator: others have more at stake; add with `bflnode validator bond AMOUNT`"
        case _:
            return ""


def _offence_json(store: ChainStore, key: bytes, offence: Offence) -> Json:
    account, height = AccountId(key[:32]), int.from_bytes(key[32:40], "big")
    stored = store.transaction(TransactionId(offence.transaction))
    body = None if stored is None else stored.transaction.body
    return {
        "account": account_text(account),
        "kind": offence.kind.name.lower().replace("_", "-"),
        "height": height,
        "time_ms": offence.time_ms,
        "slashed": offence.slashed,
        "transaction": offence.transaction.hex(),
        "reporter": None if stored is None else account_text(stored.transaction.sender),
        "evidence": record_to_json(body) if isinstance(body, Evidence) else None,
    }
