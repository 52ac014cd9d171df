"""What the verbs that send a transaction share: sign it, hand it to the running node, wait for its block."""

import time
from typing import TYPE_CHECKING, Any

import click

from .options import NOT_READY, UNREACHABLE, CommandError, Function, home_option, json_option
from .output import emit

if TYPE_CHECKING:
    from bflnode.consensus.transaction import Body
    from bflnode.node.home import Home
    from bflnode.node.rpc.reader import Reader

VALID_FOR_MS = 3_600_000
"""What no block has taken for an hour is void: its sender can be sure that it won't come later."""

WAIT_S = 60.0
"""How long is waited for the block; blocks come within seconds."""

POLL_S = 0.2


def sending_options(function: Function) -> Function:
    """What every verb has that sends a transaction."""
    wait = click.option("--wait/--no-wait", default=True, show_default=True, help="Wait until a block has it.")
    return wait(home_option(json_option(function)))


def require_running(reader: "Reader", home: "Home") -> None:
    """Only a running node can send; raises `CommandError`."""
    if not reader.is_running:
        raise CommandError(f"no node runs on {home.root}: start it with `bflnode start`", UNREACHABLE)


def send(reader: "Reader", home: "Home", body: "Body", own: dict[str, Any], *, wait: bool) -> dict[str, Any]:
    """Sign a body as the home's account, hand it in, and wait for its block.

    Args:
        reader: of the running node.
        home: with the key.
        body: what to send.
        own: what the node answered about the account, for its nonce.
        wait: whether to wait for the block.

    Raises:
        CommandError: the transaction was dropped, or no block has it in time.
        RpcError: the node refused it.
    """
    from bflnode.consensus.transaction import sign_transaction
    from bflnode.consensus.types import ChainId

    chain = reader.call("status")
    transaction = sign_transaction(
        home.load_account_key(),
        ChainId(bytes.fromhex(chain["chain_id"])),
        body,
        nonce=own["next_nonce"],
        valid_until_ms=max(chain["head_time_ms"], time.time_ns() // 1_000_000) + VALID_FOR_MS,
    )
    answer: dict[str, Any] = reader.call("broadcast_tx", transaction=transaction.encoded.hex())
    return _wait_for_block(reader, answer["id"]) if wait else answer


def _wait_for_block(reader: "Reader", identifier: str) -> dict[str, Any]:
    from bflnode.node.rpc.refusals import RpcError

    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        try:
            found: dict[str, Any] = reader.call("tx", reference=identifier)
        except RpcError as error:
            raise CommandError(f"transaction {identifier} was dropped: {error}") from error
        if found["status"] == "included":
            return {"id": identifier, "status": "included", "height": found["height"]}
        time.sleep(POLL_S)
    raise CommandError(
        f"transaction {identifier} still waits after {WAIT_S:g} s: look later with `bflnode tx`", NOT_READY
    )


def emit_sent(answer: dict[str, Any], as_json: bool) -> None:
    """Say what became of a transaction."""
    emit(answer, as_json, _render_sent)


def _render_sent(answer: dict[str, Any]) -> None:
    if answer["status"] == "included":
        click.echo(f"transaction {answer['id']} is in block {answer['height']}")
    else:
        click.echo(f"transaction {answer['id']} waits for a block")
