"""A testnet's report in a terminal: rounds, balances, and every check with its mark. The report is `report`'s."""

import sys
from typing import Any

import click

from bflnode.node.amounts import plain_tokens

from .output import percent, printable, short, table


def print_report(report: dict[str, Any]) -> None:
    """Print a report, as `Report.to_json` gives it."""
    chain, options = report["chain"], report["options"]
    click.echo(
        f"{chain['nodes']} nodes, {options['dataset']}, alpha {options['alpha']}, "
        f"{options['rule']} of {options['combination']}, {options['clusters']} clusters, seed {options['seed']}; "
        f"chain {short(chain['id'])} at height {chain['height']}"
    )
    _print_rounds(report["rounds"])
    click.echo("Accuracies are means over nodes: received = before a client's local training, post = after it,")
    click.echo(
        "local only = without the network; these on the client's own test data. "
        "global = of the model it gets, on everybody's."
    )
    _print_balances(report["balances"])
    for check in report["checks"]:
        click.echo(f"{mark(check['ok'])} {check['title']}: {printable(check['detail'])}")
    failed = [check["id"] for check in report["checks"] if not check["ok"]]
    count = len(report["checks"])
    took = f" Took {_timings(report['timings'])}." if "timings" in report else ""
    click.echo(f"\n{len(failed)} of {count} checks FAILED." if failed else f"\nAll {count} checks hold.{took}")


def mark(is_ok: bool) -> str:
    """A tick or a cross, in words where the terminal can't show them."""
    try:
        "✓✗".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "ok    " if is_ok else "FAILED"
    return "✓" if is_ok else "✗"


def _print_rounds(rounds: list[dict[str, Any]]) -> None:
    headings = ("round", "aggregator", "packer", "clients", "clusters", "received", "post", "local only", "global")
    table(
        (*headings, "loss", "seconds", "reward"),
        (
            (
                line["number"] if not line["attempt"] else f"{line['number']} (attempt {line['attempt'] + 1})",
                line["aggregator"],
                line["packer"],
                line["clients"],
                "+".join(map(str, line["clusters"])) or "void",
                percent(line["received_accuracy"]),
                percent(line["post_accuracy"]),
                percent(line["control_accuracy"]),
                percent(line["global_accuracy"]),
                "-" if line["loss"] is None else f"{line['loss']:.3f}",
                f"{line['seconds']:.1f}",
                plain_tokens(line["reward"]),
            )
            for line in rounds
        ),
        empty="no learning round was settled",
    )


def _print_balances(balances: list[dict[str, Any]]) -> None:
    table(
        ("node", "account", "rounds paid", "before", "earned", "after", "stake"),
        (
            (
                line["node"],
                short(line["account"]),
                line["rounds_paid"],
                plain_tokens(line["before"]),
                plain_tokens(line["earned"]),
                plain_tokens(line["after"]),
                plain_tokens(line["stake"]),
            )
            for line in balances
        ),
    )


def _timings(timings: dict[str, float]) -> str:
    steps = ", ".join(f"{name[:-2]} {seconds:.1f}" for name, seconds in timings.items() if name != "total_s")
    return f"{timings['total_s']:.1f} s: {steps}"
