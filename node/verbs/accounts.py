"""The verbs about accounts and tasks: keys, accounts, tasks, queue, transfers."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import (
    CommandError,
    examples,
    home_option,
    local_options,
    reading,
    reading_options,
)
from .output import emit, facts, short, table
from .sending import emit_sent, require_running, send, sending_options

if TYPE_CHECKING:
    from bflnode.node.home import Home
    from bflnode.node.rpc.reader import Reader


@click.group(
    invoke_without_command=True,
    epilog=examples("bflnode keys", "bflnode keys admit --admission-key admission.key --out admission.json 3fa9…"),
)
@local_options
@click.pass_context
def keys(context: click.Context, home: "Home", as_json: bool) -> None:
    """Show this node's account and peer id; admit accounts, take an admission."""
    if context.invoked_subcommand is None:
        emit(_identity(home), as_json, lambda answer: facts((name.replace("_", " "), answer[name]) for name in answer))


def _identity(home: "Home") -> dict[str, Any]:
    from bflnode.consensus.keys import account_text
    from bflnode.node.p2p.peer_identity import peer_id_text

    home.require()
    return {
        "account": account_text(home.load_account()),
        "node_id": peer_id_text(home.load_peer_seed()),
        "account_key_file": str(home.account_key_file),
        "peer_key_file": str(home.peer_key_file),
        "has_credential": home.load_credential() is not None,
    }


@keys.command("show", epilog=examples("bflnode keys show --json"))
@local_options
def keys_show(home: "Home", as_json: bool) -> None:
    """Show the account and the peer id; secret keys are never shown."""
    emit(_identity(home), as_json, lambda answer: facts((name.replace("_", " "), answer[name]) for name in answer))


@keys.command("admit", epilog=examples("bflnode keys admit --admission-key admission.key --out admission.json 3fa9…"))
@click.argument("account")
@click.option("--admission-key", required=True, type=click.Path(path_type=Path), help="The network's admission key.")
@click.option("--out", type=click.Path(path_type=Path), help="Where to write the credential; default: standard output.")
@home_option
def keys_admit(account: str, admission_key: Path, out: Path | None, home: "Home") -> None:
    """Sign an account in: make the credential that opens it with the initial stake."""
    from bflnode.consensus.keys import parse_account
    from bflnode.node.admission import credential_text

    try:
        admitted = parse_account(account)
    except ValueError as error:
        raise CommandError(f"{error}; the newcomer sees it with `bflnode keys`") from error
    text = credential_text(admission_key, home.require().load_genesis(), admitted)
    if out is None:
        click.echo(text, nl=False)
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise CommandError(f"cannot write {out}: {error.strerror}") from error
    click.echo(f"wrote {out}: give it to the newcomer, who runs `bflnode keys accept {out.name}`")


@keys.command("accept", epilog=examples("bflnode keys accept admission.json"))
@click.argument("file", type=click.Path(path_type=Path))
@home_option
def keys_accept(file: Path, home: "Home") -> None:
    """Take the credential that opens this node's account; the node uses it when it starts next."""
    from bflnode.node.admission import check_credential, write_credential

    home.require()
    account = home.load_account()
    credential = check_credential(file, home.load_genesis(), account)
    write_credential(home, account, credential)
    click.echo(f"{home.admission_file} is in place: (re)start the node to join")


@click.command(epilog=examples("bflnode account", "bflnode account 3fa9", "bflnode account --all --json"))
@click.argument("account_id", metavar="[ID]", default="")
@click.option("--all", "show_all", is_flag=True, help="List all accounts.")
@reading_options
def account(account_id: str, show_all: bool, home: "Home", as_json: bool) -> None:
    """Show an account (this node's, or by the first digits of its id): balance, stake, tasks, latest changes."""
    with reading(home) as reader:
        answer = reader.call("accounts") if show_all else reader.call("account", reference=account_id)
    emit(answer, as_json, _render_accounts if show_all else _render_account)


def _render_accounts(accounts: list[dict[str, Any]]) -> None:
    from bflnode.node.amounts import plain_tokens

    table(
        ["account id", "balance", "stake", "own"],
        [(row["account"], plain_tokens(row["balance"]), plain_tokens(row["stake"]), row["is_own"]) for row in accounts],
    )


def _render_account(answer: dict[str, Any]) -> None:
    from bflnode.node.amounts import plain_tokens, tokens_text

    position = answer["queue_position"]
    facts(
        [
            ("account", answer["account"]),
            ("balance", tokens_text(answer["balance"]) + ("" if answer["exists"] else ", it does not exist yet")),
            ("stake", tokens_text(answer["stake"])),
            ("nonce", answer["nonce"]),
            ("packing queue", "not in it" if position is None else f"position {position}"),
            *(
                (f"task {task['name']}", f"{task['samples']} samples, reputation {task['reputation']}")
                for task in answer["tasks"]
            ),
        ]
    )
    table(
        ["from block", "balance"],
        [(change["height"], plain_tokens(change["balance"])) for change in answer["history"]],
        empty="its balance has never changed",
    )


@click.group(epilog=examples("bflnode task list", "bflnode task show digits"))
def task() -> None:
    """See the learning tasks."""


@task.command("list", epilog=examples("bflnode task list", "bflnode task list --json"))
@reading_options
def task_list(home: "Home", as_json: bool) -> None:
    """List all tasks."""
    with reading(home) as reader:
        answer = reader.call("tasks")
    emit(answer, as_json, _render_tasks)


def _render_tasks(tasks: list[dict[str, Any]]) -> None:
    from bflnode.node.amounts import plain_tokens

    table(
        ["number", "name", "task id", "status", "architecture", "rule", "clients", "round", "reward", "escrow"],
        [
            (
                entry["number"],
                entry["name"],
                short(entry["id"]),
                entry["status"],
                entry["architecture"],
                entry["rule"],
                entry["clients"],
                f"{entry['round']} of {entry['rounds']}",
                plain_tokens(entry["reward"]),
                plain_tokens(entry["escrow"]),
            )
            for entry in tasks
        ],
        empty="this chain has no tasks",
    )


@task.command("show", epilog=examples("bflnode task show", "bflnode task show 0 --json"))
@click.argument("reference", metavar="[TASK]", default="")
@reading_options
def task_show(reference: str, home: "Home", as_json: bool) -> None:
    """Show a task by number, name or id: its specification and its participants."""
    with reading(home) as reader:
        answer = reader.call("task", reference=reference)
    emit(answer, as_json, _render_task)


def _render_task(answer: dict[str, Any]) -> None:
    specification = answer["specification"]
    deadlines = specification.pop("deadlines")
    facts(
        [
            ("task", answer["id"]),
            ("status", f"{answer['status']}, round {answer['round']} of {answer['rounds']}"),
            ("requester", answer["requester"]),
            ("escrow", f"{answer['escrow']} micro-tokens"),
            *((name.replace("_", " "), value) for name, value in specification.items()),
            *(
                (f"deadline {name.removesuffix('_ms')}", f"{value} ms")
                if name.endswith("_ms")
                else (f"deadline {name}", value)
                for name, value in deadlines.items()
            ),
        ]
    )
    table(
        ["participant", "samples", "reputation", "misses", "leaving", "base model id"],
        [
            (
                short(entry["account"]),
                entry["samples"],
                entry["reputation"],
                entry["misses"],
                entry["is_leaving"],
                short(entry["base"]),
            )
            for entry in answer["participants"]
        ],
        empty="nobody has registered yet",
    )


@click.command(epilog=examples("bflnode queue", "bflnode queue --json"))
@reading_options
def queue(home: "Home", as_json: bool) -> None:
    """Show the packing queue, who aggregates now and who is next, and the validators."""
    with reading(home) as reader:
        answer = reader.call("queue")
    emit(answer, as_json, _render_queue)


def _render_queue(answer: dict[str, Any]) -> None:
    from bflnode.node.amounts import plain_tokens, tokens_text

    facts(
        [
            ("packing queue", " ".join(short(entry) for entry in answer["queue"]) or "empty"),
            ("aggregator", short(answer["aggregator"])),
            ("next in line", " ".join(short(entry) for entry in answer["line"][1:]) or "-"),
            ("admission pool", tokens_text(answer["admission_pool"])),
            ("supply", tokens_text(answer["supply"])),
        ]
    )
    table(
        ["index", "validator id", "stake", "queue position", "own"],
        [
            (entry["index"], entry["account"], plain_tokens(entry["stake"]), entry["queue_position"], entry["is_own"])
            for entry in answer["validators"]
            if entry["votes"]
        ],
    )


@click.command(
    epilog=examples(
        "bflnode transfer --to 3fa9 --amount 0.25", "bflnode transfer --to 3fa9… --amount 2 --no-wait --json"
    )
)
@click.option("--to", "recipient", required=True, metavar="ACCOUNT", help="Who gets it; first digits do.")
@click.option("--amount", required=True, metavar="TOKENS", help="How much, such as 2 or 0.25.")
@sending_options
def transfer(recipient: str, amount: str, wait: bool, home: "Home", as_json: bool) -> None:
    """Send tokens from this node's account through the running node."""
    from bflnode.node.amounts import parse_tokens

    try:
        micro_tokens = parse_tokens(amount)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--amount") from error
    with reading(home) as reader:
        require_running(reader, home)
        answer = _send(reader, home, recipient, micro_tokens, wait=wait)
    emit_sent(answer, as_json)


def _send(reader: "Reader", home: "Home", recipient: str, micro_tokens: int, *, wait: bool) -> dict[str, Any]:
    from bflnode.consensus.keys import parse_account
    from bflnode.consensus.transaction import Transfer
    from bflnode.node.amounts import tokens_text

    own, to = reader.call("account"), reader.call("account", reference=recipient)
    if own["balance"] < micro_tokens:
        free, wanted = tokens_text(own["balance"]), tokens_text(micro_tokens)
        raise CommandError(f"insufficient-funds: {free} are free, {wanted} were to be sent: send less")
    return send(reader, home, Transfer(parse_account(to["account"]), micro_tokens), own, wait=wait)
