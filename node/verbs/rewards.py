"""The verbs about rewards: who got what in a learning round, and why."""

from typing import TYPE_CHECKING, Any

import click

from .options import examples, reading, reading_options, task_option
from .output import emit, facts, short, table

if TYPE_CHECKING:
    from bflnode.node.home import Home


@click.group(epilog=examples("bflnode reward show --round 3", "bflnode reward explain --round 3 --client 3fa9"))
def reward() -> None:
    """See who was paid what, and why."""


@reward.command("show", epilog=examples("bflnode reward show", "bflnode reward show --round 3 --json"))
@click.option("--round", "number", default="latest", show_default=True, metavar="N", help="Which learning round.")
@reading_options
@task_option
def reward_show(number: str, home: "Home", as_json: bool, task: str) -> None:
    """Show what each client got in a learning round."""
    with reading(home) as reader:
        answer = reader.call("rewards", number=number, task=task)
    emit(answer, as_json, _render_rewards)


def _render_rewards(answer: dict[str, Any]) -> None:
    from bflnode.node.amounts import plain_tokens, tokens_text

    facts(
        [
            ("learning round", f"{answer['number']}, {answer['status']} in block {answer['height']}"),
            ("reward", tokens_text(answer["reward"])),
            ("aggregator", f"{short(answer['aggregator'])} got {tokens_text(answer['aggregator_income'])}"),
        ]
    )
    table(
        ["client", "cluster", "gross", "fee", "net", "as aggregator", "balance before", "after", "left out"],
        [
            (
                short(client["account"]),
                client["cluster"],
                plain_tokens(client["gross"]),
                plain_tokens(client["fee"]),
                plain_tokens(client["net"]),
                plain_tokens(client["aggregator_income"]),
                plain_tokens(client["balance_before"]),
                plain_tokens(client["balance_after"]),
                "-" if client["exclusion"] == "none" else client["exclusion"].replace("_", " "),
            )
            for client in answer["clients"]
        ],
    )


@reward.command(
    "explain", epilog=examples("bflnode reward explain", "bflnode reward explain --round 3 --client 3fa9", "… --json")
)
@click.option("--round", "number", default="latest", show_default=True, metavar="N", help="Which learning round.")
@click.option("--client", default="", metavar="ACCOUNT", help="Whose reward; first digits do; default: this node's.")
@reading_options
@task_option
def reward_explain(number: str, client: str, home: "Home", as_json: bool, task: str) -> None:
    """Explain a client's reward step by step, with the transactions that show it; or why it got nothing."""
    with reading(home) as reader:
        answer = reader.call("reward", number=number, client=client, task=task)
    emit(answer, as_json, _render_explanation)


def _render_explanation(answer: dict[str, Any]) -> None:
    from bflnode.node.amounts import tokens_text

    lines: list[tuple[str, object]] = [
        ("learning round", f"{answer['number']}, {answer['status']}"),
        ("client", answer["client"]),
    ]
    if answer["net"] is not None:
        lines += [
            ("gross", tokens_text(answer["gross"])),
            ("fee", tokens_text(answer["fee"])),
            ("net", tokens_text(answer["net"])),
            ("as aggregator", tokens_text(answer["aggregator_income"])),
            ("balance before", tokens_text(answer["balance_before"])),
            ("balance after", tokens_text(answer["balance_after"])),
        ]
    facts(lines)
    click.echo()
    for sentence in answer["explanation"]:
        click.echo(sentence)
    places = answer.get("transactions")
    if places is None:
        return
    shown = [(name, places[name]) for name in ("commit", "reveal", "aggregate") if places[name] is not None]
    votes = [(f"attest: {vote['verdict']}", vote) for vote in places["attestations"]]
    click.echo()
    table(
        ["shown by", "block", "transaction id"], [(name, place["height"], place["id"]) for name, place in shown + votes]
    )
