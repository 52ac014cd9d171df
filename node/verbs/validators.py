"""The verbs about stake: validators, bonding and unbonding, leaving jail, evidence."""

import time
from typing import TYPE_CHECKING, Any

import click

from .options import CommandError, examples, reading, reading_options
from .output import emit, facts, moment, percent, short, table
from .sending import emit_sent, require_running, send, sending_options

if TYPE_CHECKING:
    from bflnode.node.home import Home


@click.group(epilog=examples("bflnode validator list", "bflnode validator bond 5", "bflnode validator unjail"))
def validator() -> None:
    """Show the validators and their stake; add to this node's stake, take from it, leave jail."""


@validator.command("list", epilog=examples("bflnode validator list", "bflnode validator list --json"))
@reading_options
def list_validators(home: "Home", as_json: bool) -> None:
    """List who votes on the next block, and who has a stake but doesn't vote."""
    with reading(home) as reader:
        answer = reader.call("validators")
    emit(answer, as_json, _render_list)


def _render_list(answer: list[dict[str, Any]]) -> None:
    from bflnode.node.amounts import plain_tokens

    table(
        ["index", "account id", "stake", "share of votes", "standing", "missed", "unbonding", "queue position", "own"],
        [
            (
                entry["index"],
                entry["account"],
                plain_tokens(entry["stake"]),
                percent(entry["share"]) if entry["votes"] else "-",
                entry["standing"],
                f"{entry['missed']} of {entry['window']}",
                plain_tokens(sum(part["amount"] for part in entry["unbonding"])),
                entry["queue_position"],
                entry["is_own"],
            )
            for entry in answer
        ],
    )


@validator.command(epilog=examples("bflnode validator show", "bflnode validator show 3fa9 --json"))
@click.argument("account", default="")
@reading_options
def show(account: str, home: "Home", as_json: bool) -> None:
    """Show an account as a validator (this node's, or by the first digits of its id), and what to do about it."""
    with reading(home) as reader:
        answer = reader.call("validator", reference=account)
    emit(answer, as_json, _render_validator)


def _render_validator(answer: dict[str, Any]) -> None:
    from bflnode.node.amounts import tokens_text

    facts(
        [
            ("account", answer["account"]),
            ("standing", answer["standing"]),
            ("stake", tokens_text(answer["stake"])),
            ("share of votes", percent(answer["share"]) if answer["votes"] else "none"),
            ("index in commits", answer["index"]),
            ("queue position", answer["queue_position"]),
            ("missed", f"{answer['missed']} of the last {answer['window']} commits"),
            ("jailed until", moment(answer["jailed_until_ms"])),
            *(
                ("unbonding", f"{tokens_text(entry['amount'])}, free at {moment(entry['release_ms'])}")
                for entry in answer["unbonding"]
            ),
            *([("to do", answer["advice"])] if answer["advice"] else []),
        ]
    )


@validator.command(epilog=examples("bflnode validator bond 5", "bflnode validator bond 0.5 --no-wait --json"))
@click.argument("amount", metavar="TOKENS")
@sending_options
def bond(amount: str, wait: bool, home: "Home", as_json: bool) -> None:
    """Add free tokens to this node's stake; with enough of them it votes from the next block on."""
    from bflnode.consensus.transaction import Bond
    from bflnode.node.amounts import tokens_text

    micro_tokens = _amount(amount)
    with reading(home) as reader:
        require_running(reader, home)
        own = reader.call("account")
        if own["balance"] < micro_tokens:
            free, wanted = tokens_text(own["balance"]), tokens_text(micro_tokens)
            raise CommandError(f"insufficient-funds: {free} are free, {wanted} were to be bonded: bond less")
        answer = send(reader, home, Bond(micro_tokens), own, wait=wait)
    emit_sent(answer, as_json)


@validator.command(epilog=examples("bflnode validator unbond 2", "bflnode validator unbond 2.5 --json"))
@click.argument("amount", metavar="TOKENS")
@sending_options
def unbond(amount: str, wait: bool, home: "Home", as_json: bool) -> None:
    """Take tokens out of this node's stake; they are free after the unbonding time, and can be slashed until then."""
    from bflnode.consensus.transaction import Unbond
    from bflnode.node.amounts import tokens_text

    micro_tokens = _amount(amount)
    with reading(home) as reader:
        require_running(reader, home)
        stake = reader.call("validator")["stake"]
        if stake < micro_tokens:
            bonded, wanted = tokens_text(stake), tokens_text(micro_tokens)
            raise CommandError(f"insufficient-stake: {bonded} are bonded, {wanted} were to be unbonded: unbond less")
        answer = send(reader, home, Unbond(micro_tokens), reader.call("account"), wait=wait)
    emit_sent(answer, as_json)


@validator.command(epilog=examples("bflnode validator unjail", "bflnode validator unjail --json"))
@sending_options
def unjail(wait: bool, home: "Home", as_json: bool) -> None:
    """End this node's time in jail, once it may; it votes again from the next block on."""
    from bflnode.consensus.transaction import Unjail

    with reading(home) as reader:
        require_running(reader, home)
        found, chain = reader.call("validator"), reader.call("status")
        if found["tombstoned"]:
            raise CommandError(f"tombstoned: {found['advice']}")
        if not found["jailed"]:
            raise CommandError(f"not-jailed: the account's standing is {found['standing']}: nothing to do")
        if chain["syncing"]:
            raise CommandError("the node still catches up, and would be jailed again: wait until it has")
        if max(chain["head_time_ms"], time.time_ns() // 1_000_000) < found["jailed_until_ms"]:
            raise CommandError(f"jailed: not before {moment(found['jailed_until_ms'])}: send it again then")
        answer = send(reader, home, Unjail(), reader.call("account"), wait=wait)
    emit_sent(answer, as_json)


def _amount(text: str) -> int:
    from bflnode.node.amounts import parse_tokens

    try:
        micro_tokens = parse_tokens(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="TOKENS") from error
    if not micro_tokens:
        raise click.BadParameter("it is nothing: give an amount above 0", param_hint="TOKENS")
    return micro_tokens


@click.group(epilog=examples("bflnode evidence list", "bflnode evidence extract forged.proof --send"))
def evidence() -> None:
    """Show who was slashed, and the proofs; find such proofs in a forged proof file."""


@evidence.command("list", epilog=examples("bflnode evidence list", "bflnode evidence list --json"))
@reading_options
def list_evidence(home: "Home", as_json: bool) -> None:
    """List all punishments of this chain; --json has the signed messages that prove a double signature."""
    with reading(home) as reader:
        answer = reader.call("evidence")
    emit(answer, as_json, _render_evidence)


def _render_evidence(answer: list[dict[str, Any]]) -> None:
    from bflnode.node.amounts import plain_tokens

    table(
        ["offender id", "offence", "block", "time", "slashed", "transaction id", "reporter id"],
        [
            (
                entry["account"],
                entry["kind"],
                entry["height"],
                moment(entry["time_ms"]),
                plain_tokens(entry["slashed"]),
                short(entry["transaction"]),
                short(entry["reporter"]),
            )
            for entry in answer
        ],
        empty="nobody was slashed",
    )
