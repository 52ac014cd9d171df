"""The verbs around peers: `peers` lists them, `peers ban` and `peers unban` keep some out."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from .options import CommandError, examples, home_option, json_option, reading, reading_options, rpc_url
from .output import emit, facts, moment, short, table

if TYPE_CHECKING:
    from bflnode.node.home import Home
    from bflnode.node.p2p.bans import Bans

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@click.group(
    invoke_without_command=True,
    epilog=examples(
        "bflnode peers", "bflnode peers --json", "bflnode peers list --banned", "bflnode peers ban PEER_ID"
    ),
)
@reading_options
@click.pass_context
def peers(context: click.Context, home: "Home", as_json: bool) -> None:
    """List the connected peers; with a verb, ban some or let them in again."""
    if context.invoked_subcommand is None:
        _list_connected(home, as_json)
        return
    given = [name for name in ("home", "as_json") if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    if given or rpc_url() is not None:
        raise click.UsageError(f"options go after the verb: bflnode peers {context.invoked_subcommand} …")


@peers.command("list", epilog=examples("bflnode peers list", "bflnode peers list --banned --json"))
@reading_options
@click.option("--banned", is_flag=True, help="List who is banned instead: by misbehaving, or by you.")
def peers_list(home: "Home", as_json: bool, banned: bool) -> None:
    """List the connected peers, or those that are banned."""
    if not banned:
        _list_connected(home, as_json)
        return
    from bflnode.node.rpc.reader import find_running

    if rpc_url() is not None or find_running(home.require()) is not None:
        with reading(home) as reader:
            bans = reader.call("net_info")["bans"]
    else:
        with _stored_bans(home) as stored:
            from bflnode.node.rpc.inspection_peers import ban_line

            bans = [ban_line(ban) for ban in stored.all()]
    emit(bans, as_json, _render_bans)


@peers.command(
    "ban",
    epilog=examples(
        "bflnode peers ban 12D3KooWGC6TvWhfajpgX6wvJHhYvKpTGRW4xGdjw3cPhZ7fkgcz",
        "bflnode peers ban 192.0.2.7 --for 2h --reason 'floods us'",
    ),
)
@click.argument("target", metavar="PEER_ID|ADDRESS")
@click.option("--for", "duration", metavar="TIME", help="How long, such as 90s, 30m, 12h, 7d; else for ever.")
@click.option("--reason", default="", help="For people; the peer is told too.")
@home_option
@json_option
def peers_ban(target: str, duration: str | None, reason: str, home: "Home", as_json: bool) -> None:
    """Ban a peer or an IP address, and end its connections. Works on a stopped node too, and outlives restarts."""
    from bflnode.node.rpc.client import RpcClient
    from bflnode.node.rpc.inspection_peers import ban_line
    from bflnode.node.rpc.reader import find_running

    seconds = None if duration is None else _seconds(duration)
    target = _target(target)
    running = find_running(home.require())
    if running is not None:
        with RpcClient(running.rpc) as client:
            answer = client.call("ban", target=target, seconds=seconds, reason=reason)
    else:
        with _stored_bans(home) as bans:
            duration_ms = None if seconds is None else seconds * 1000
            answer = ban_line(bans.ban(target, duration_ms=duration_ms, reason=reason))
    emit(answer, as_json, lambda ban: facts([("banned", ban["target"]), ("until", _until(ban["until_ms"]))]))


@peers.command("unban", epilog=examples("bflnode peers unban 12D3KooWGC6TvWhfajpgX6wvJHhYvKpTGRW4xGdjw3cPhZ7fkgcz"))
@click.argument("target", metavar="PEER_ID|ADDRESS")
@home_option
@json_option
def peers_unban(target: str, home: "Home", as_json: bool) -> None:
    """End a ban; the peer may connect again at once."""
    from bflnode.node.rpc.client import RpcClient
    from bflnode.node.rpc.reader import find_running

    target = _target(target)
    running = find_running(home.require())
    if running is not None:
        with RpcClient(running.rpc) as client:
            answer = client.call("unban", target=target)
    else:
        with _stored_bans(home) as bans:
            answer = {"target": target, "was_banned": bans.unban(target)}
    if not answer["was_banned"]:
        raise CommandError(f"{target} is not banned: `bflnode peers list --banned` shows who is")
    emit(answer, as_json, lambda found: facts([("not banned any more", found["target"])]))


def _target(text: str) -> str:
    """Whom to ban or let in again, as bans are kept."""
    from bflnode.node.p2p.bans import BanError, check_target

    try:
        return check_target(text)
    except BanError as error:
        raise CommandError(str(error)) from error


@contextmanager
def _stored_bans(home: "Home") -> Iterator["Bans"]:
    """The bans of a stopped node, under its lock."""
    from bflnode.node.node_clock import now_ms
    from bflnode.node.p2p.bans import Bans
    from bflnode.storage.home_lock import HomeLock

    with HomeLock(home.root):
        yield Bans(now_ms, home.bans_file)


def _seconds(text: str) -> int:
    number, unit = text[:-1], text[-1:]
    if unit not in SECONDS or not number.isascii() or not number.isdigit() or not 0 < int(number) < 10**6:
        raise click.BadParameter(f"{text!r} is no length of time: write 90s, 30m, 12h or 7d", param_hint="--for")
    return int(number) * SECONDS[unit]


def _until(until_ms: int | None) -> str:
    return "for ever" if until_ms is None else moment(until_ms)


def _list_connected(home: "Home", as_json: bool) -> None:
    with reading(home) as reader:
        answer = reader.call("net_info")
    emit(answer, as_json, _render_peers)


def _render_peers(answer: dict[str, Any]) -> None:
    table(
        ["peer id", "account", "height", "validator", "version", "clock", "address"],
        [
            (
                peer["node_id"],
                short(peer["account"]),
                peer["height"],
                peer["is_validator"],
                peer["version"],
                f"{peer['clock_offset_ms'] / 1000:+.1f} s",
                peer["addresses"][0] if peer["addresses"] else peer["ip"],
            )
            for peer in answer["peers"]
        ],
        empty="no peers: give the node one with `bflnode start --peer MULTIADDR`; `bflnode doctor` says why",
    )


def _render_bans(bans: list[dict[str, Any]]) -> None:
    table(
        ["banned id", "until", "times", "reason"],
        [(ban["target"], _until(ban["until_ms"]), ban["count"], ban["reason"] or "-") for ban in bans],
        empty="nobody is banned",
    )
