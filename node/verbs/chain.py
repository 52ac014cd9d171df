"""The verbs about the chain: blocks, transactions, learning rounds, clusters, verification."""

from typing import TYPE_CHECKING, Any

import click

from .options import VERIFICATION_FAILED, CommandError, examples, reading, reading_options, task_option
from .output import duration, emit, facts, moment, percent, short, table

if TYPE_CHECKING:
    from bflnode.node.home import Home

SHOWN_BODY = 160
"""Characters of a field of a transaction's body: a similarity matrix has 130,000."""


@click.group(epilog=examples("bflnode chain head", "bflnode chain list --count 5", "bflnode chain verify --reexecute"))
def chain() -> None:
    """Look at the chain and verify it."""


@chain.command("head", epilog=examples("bflnode chain head", "bflnode chain head --json"))
@reading_options
def chain_head(home: "Home", as_json: bool) -> None:
    """Show the last block in a few words."""
    with reading(home) as reader:
        answer = reader.call("head")
    emit(
        answer,
        as_json,
        lambda head: facts(
            [
                ("height", head["height"]),
                ("block", head["id"]),
                ("time", moment(head["time_ms"])),
                ("transactions", head["transactions"]),
                ("state root", head["state_root"]),
            ]
        ),
    )


@chain.command("list", epilog=examples("bflnode chain list", "bflnode chain list --count 50 --before 1000"))
@reading_options
@click.option("--count", default=20, show_default=True, type=click.IntRange(1, 100), help="How many blocks.")
@click.option("--before", type=click.IntRange(1), help="Only blocks below this height.")
def chain_list(home: "Home", as_json: bool, count: int, before: int | None) -> None:
    """List the last blocks, newest first."""
    with reading(home) as reader:
        answer = reader.call("blockchain", count=count, before=before)
    emit(answer, as_json, lambda blocks: _render_blocks(blocks, before))


def _render_blocks(blocks: list[dict[str, Any]], before: int | None) -> None:
    table(
        ["height", "block id", "time", "proposer", "round", "transactions"],
        [
            (
                block["height"],
                block["id"],
                moment(block["time_ms"]),
                short(block["proposer"]),
                block["agreement_round"],
                _kinds_text(block["kinds"]),
            )
            for block in blocks
        ],
        empty="the chain has no blocks yet" if before is None else f"the chain has no blocks below {before}",
    )


def _kinds_text(kinds: list[str]) -> str:
    counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    return ", ".join(kind if count == 1 else f"{count} {kind}" for kind, count in counts.items()) or "none"


@chain.command("verify", epilog=examples("bflnode chain verify", "bflnode chain verify --reexecute --json"))
@reading_options
@click.option("--reexecute", is_flag=True, help="Also aggregate every learning round again from the stored models.")
def chain_verify(home: "Home", as_json: bool, reexecute: bool) -> None:
    """Verify the whole chain: hashes, signatures, commits, roots, payouts; exit code 4 names the first fault.

    Every block is executed again from the genesis. With --reexecute every aggregation is computed again too: the output
    models bit for bit, the similarities within the task's tolerance. A running node does it itself.
    """
    with reading(home) as reader:
        answer = reader.verify(reexecute=reexecute)
    emit(answer, as_json, _render_verification)
    if not answer["is_valid"]:
        fault = answer["fault"]
        message = f"block {fault['height']}, {fault['check']} ({fault['rule']}): {fault['subject']} should be "
        raise CommandError(f"{message}{fault['expected']}, but is {fault['got']}", VERIFICATION_FAILED)


def _render_verification(answer: dict[str, Any]) -> None:
    base = answer["base"]
    facts(
        [
            ("chain", answer["chain_id"]),
            (
                "verified",
                f"{answer['verified'] - base} of {answer['tip'] - base} blocks, {answer['transactions']} transactions",
            ),
        ]
    )
    if base:
        click.echo(f"from block {base + 1} on: this node's chain starts from a snapshot at height {base}")
    for task in answer["reexecution"]:
        line = f"task {short(task['task'])}: {task['reexecuted']} of {task['settled']} learning rounds aggregated again"
        if task["missing"]:
            since = task["possible_from"]
            line += (
                f"; models of older rounds are gone, complete from round {since}" if since else "; models are missing"
            )
        click.echo(line)
    if answer["is_valid"]:
        click.echo("everything is right")


@click.command(epilog=examples("bflnode block latest", "bflnode block 12", "bflnode block 12 --json"))
@click.argument("reference", metavar="HEIGHT|ID|latest", default="latest")
@reading_options
def block(reference: str, home: "Home", as_json: bool) -> None:
    """Show a block, its transactions and who signed it."""
    with reading(home) as reader:
        answer = reader.call("block", reference=reference)
    emit(answer, as_json, _render_block)


def _render_block(answer: dict[str, Any]) -> None:
    header = answer["header"]
    facts(
        [
            ("height", answer["height"]),
            ("block", answer["id"]),
            ("parent", header["parent"]),
            ("time", moment(answer["time_ms"])),
            ("proposer", answer["proposer"]),
            ("agreement round", answer["agreement_round"]),
            ("signatures", f"{len(answer['commit']['signatures'])} in the commit"),
            ("state root", answer["state_root"]),
            ("size", f"{answer['size_bytes']} bytes"),
        ]
    )
    table(
        ["transaction id", "kind", "sender", "bytes"],
        [(entry["id"], entry["kind"], short(entry["sender"]), entry["size_bytes"]) for entry in answer["transactions"]],
        empty="no transactions",
    )


@click.command(epilog=examples("bflnode tx 5f0c…", "bflnode tx 5f0c… --json"))
@click.argument("identifier", metavar="ID")
@reading_options
def tx(identifier: str, home: "Home", as_json: bool) -> None:
    """Show a transaction and the block it is in."""
    with reading(home) as reader:
        answer = reader.call("tx", reference=identifier)
    emit(answer, as_json, _render_transaction)


def _render_transaction(answer: dict[str, Any]) -> None:
    body = []
    for name, value in answer["body"].items():
        text = str(value)
        shown = text if len(text) <= SHOWN_BODY else f"{text[:SHOWN_BODY]}… ({len(text)} characters, see --json)"
        body.append((f"  {name}", shown))
    place = "waits for a block"
    if answer["status"] == "included":
        place = f"block {answer['height']}, position {answer['index']}, {moment(answer['time_ms'])}"
    facts(
        [
            ("transaction", answer["id"]),
            ("where", place),
            ("kind", answer["kind"]),
            ("sender", answer["sender"]),
            ("nonce", answer["nonce"]),
            ("fee", f"{answer['fee']} micro-tokens"),
            ("size", f"{answer['size_bytes']} bytes"),
            ("body", ""),
            *body,
        ]
    )


@click.command("round", epilog=examples("bflnode round current", "bflnode round 3", "bflnode round 3 --json"))
@click.argument("number", metavar="N|current|latest", default="current")
@reading_options
@task_option
def learning_round(number: str, home: "Home", as_json: bool, task: str) -> None:
    """Show a learning round: phase, clients, who was left out and why, clusters, who attested."""
    with reading(home) as reader:
        answer = reader.call("round", number=number, task=task)
    emit(answer, as_json, _render_round)


def _render_round(answer: dict[str, Any]) -> None:
    lines: list[tuple[str, object]] = [
        (
            "learning round",
            f"{answer['number']} of {answer['rounds']}, attempt {answer['attempt'] + 1}, {answer['status']}",
        ),
        ("task", f"{answer['task_name']} {answer['task']}"),
        ("rule", answer["rule"]),
        ("opened", f"block {answer['opened_height']}, {moment(answer['opened_ms'])}"),
        ("aggregator", answer["aggregator"]),
    ]
    if answer["status"] == "running":
        lines += [
            ("phase", f"{answer['phase']}, until {moment(answer['deadline_ms'])} at the latest"),
            ("next in line", ", ".join(short(account) for account in answer["line"][1:]) or "-"),
        ]
    else:
        lines.append(("settled", f"block {answer['height']}, after {duration(answer['duration_ms'])}"))
    good = sum(vote["fault"] == "none" for vote in answer["attestations"])
    lines += [
        ("aggregate", answer["aggregate"]),
        ("attested", f"{good} good, {len(answer['attestations']) - good} bad"),
    ]
    for entry in answer["own"]:
        measured = f"received {percent(entry['received_accuracy'])}, after training {percent(entry['post_accuracy'])}"
        lines.append(("own accuracy", measured))
    facts(lines)
    table(
        ["client", "samples", "committed", "revealed", "model id", "cluster", "left out"],
        [
            (
                short(client["account"]),
                client["samples"],
                client["commit"] is not None,
                client["reveal"] is not None,
                short(client["model"]),
                client["cluster"],
                "-" if client["exclusion"] == "none" else client["exclusion"].replace("_", " "),
            )
            for client in answer["clients"]
        ],
    )


@click.command("rounds", epilog=examples("bflnode rounds", "bflnode rounds --json"))
@reading_options
@task_option
def learning_rounds(home: "Home", as_json: bool, task: str) -> None:
    """List the settled learning rounds."""
    with reading(home) as reader:
        answer = reader.call("rounds", task=task)
    emit(answer, as_json, _render_rounds)


def _render_rounds(rounds: list[dict[str, Any]]) -> None:
    table(
        ["round", "status", "attempt", "block", "took", "included", "clusters", "aggregator"],
        [
            (
                entry["number"],
                entry["status"],
                entry["attempt"] + 1,
                entry["height"],
                duration(entry["duration_ms"]),
                f"{entry['included']} of {entry['clients']}",
                " + ".join(map(str, entry["clusters"])) or "-",
                short(entry["aggregator"]),
            )
            for entry in rounds
        ],
        empty="no learning round is settled yet",
    )


@click.command(epilog=examples("bflnode clusters 3", "bflnode clusters latest --json"))
@click.argument("number", metavar="N|latest", default="latest")
@reading_options
@task_option
def clusters(number: str, home: "Home", as_json: bool, task: str) -> None:
    """Show the clusters of a learning round, their centroids and models; --json has the similarities too."""
    with reading(home) as reader:
        answer = reader.call("clusters", number=number, task=task)
    emit(answer, as_json, _render_clusters)


def _render_clusters(answer: dict[str, Any]) -> None:
    click.echo(
        f"learning round {answer['number']}: {len(answer['clusters'])} clusters of {len(answer['clients'])} clients"
    )
    table(
        ["cluster", "size", "members", "centroid", "model id"],
        [
            (
                entry["label"],
                entry["size"],
                " ".join(short(member) for member in entry["members"]),
                short(entry["centroid"]),
                short(entry["output"]),
            )
            for entry in answer["clusters"]
        ],
    )
