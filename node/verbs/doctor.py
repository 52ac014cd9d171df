"""The verb `doctor`: why two nodes don't see each other, and what to do about it."""

from typing import TYPE_CHECKING, Any

import click

from .options import FAILURE, examples, local_options
from .output import emit, printable

if TYPE_CHECKING:
    from bflnode.node.home import Home

MARKS = {"ok": "ok      ", "warning": "WARNING ", "failed": "FAILED  "}


@click.command(
    epilog=examples(
        "bflnode doctor",
        "bflnode doctor /ip4/192.0.2.7/tcp/26656/p2p/12D3KooW…",
        "bflnode doctor --home node0 --json",
    )
)
@click.argument("addresses", nargs=-1, metavar="[MULTIADDR]...")
@local_options
def doctor(addresses: tuple[str, ...], home: "Home", as_json: bool) -> None:
    """Say why this node and others don't see each other: each check, and what to do. Exit code 1 if one failed.

    Looks at the peers named, else at those of the settings. Works on a running node, which is asked and dialled by a
    throw-away identity, and on a stopped one, which is stood in for. Nothing is changed.
    """
    import trio

    from bflnode.node.diagnosis.doctor import Verdict, examine, patient_of

    checks = trio.run(examine, patient_of(home.require(), _running_information(home)), addresses)
    is_well = all(check.verdict is not Verdict.FAILED for check in checks)
    answer = {
        "ok": is_well,
        "checks": [
            {
                "check": check.name,
                "subject": check.subject,
                "verdict": check.verdict.value,
                "text": check.text,
                "advice": check.advice,
            }
            for check in checks
        ],
    }
    emit(answer, as_json, _render)
    if not is_well:
        click.get_current_context().exit(FAILURE)


def _running_information(home: "Home") -> dict[str, Any] | None:
    """What the running node says of its peers; None where it is stopped."""
    from bflnode.node.rpc.client import RpcClient
    from bflnode.node.rpc.reader import find_running

    running = find_running(home.require())
    if running is None:
        return None
    with RpcClient(running.rpc) as client:
        information: dict[str, Any] = client.call("net_info")
        return information


def _render(answer: dict[str, Any]) -> None:
    subject = None
    for check in answer["checks"]:
        if check["subject"] != subject:
            subject = check["subject"]
            click.echo(printable(subject))
        click.echo(f"  {MARKS[check['verdict']]}{check['check']}: {printable(check['text'])}")
        if check["advice"]:
            click.echo(f"            -> {printable(check['advice'])}")
    click.echo("all is well" if answer["ok"] else "something is wrong: see the lines with FAILED")
