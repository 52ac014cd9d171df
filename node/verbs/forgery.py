"""The verb that turns a forged proof file into evidence against the validators that signed it.

Apart from `proof`, which needs neither home nor node: what is forged shows only beside the real chain.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import VERIFICATION_FAILED, CommandError, examples, reading, reading_options
from .output import emit, facts
from .proof import read_proof
from .sending import require_running

if TYPE_CHECKING:
    from bflnode.consensus.forgery import Forgery
    from bflnode.consensus.light import SignedHeader
    from bflnode.consensus.quorum import ValidatorSet
    from bflnode.consensus.types import ChainId
    from bflnode.node.home import Home
    from bflnode.node.rpc.reader import Reader


@click.command(
    "extract", epilog=examples("bflnode evidence extract forged.proof", "bflnode evidence extract forged.proof --send")
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--send", "is_sent", is_flag=True, help="Send what was found, so that a block punishes the offenders.")
@reading_options
def evidence_extract(file: Path, is_sent: bool, home: "Home", as_json: bool) -> None:
    """Compare the blocks in a proof file with this node's chain, and say who signed two in one round of agreement."""
    from bflnode.consensus.forgery import find_forgeries
    from bflnode.consensus.rejection import Rejection
    from bflnode.consensus.types import ChainId

    with reading(home) as reader:
        if is_sent:
            require_running(reader, home)
        chain_id = ChainId(bytes.fromhex(reader.call("status")["chain_id"]))
        try:
            chain = read_proof(file).chain
            real = {step.header.height: _known(reader, step.header.height) for step in chain.steps}
            forgeries = find_forgeries(chain_id, chain, real.get)
        except Rejection as rejection:
            raise CommandError(f"{file} can't be compared: {rejection}", VERIFICATION_FAILED) from rejection
        compared = sum(found is not None for found in real.values())
        if not compared:
            raise CommandError(f"this node has none of the blocks in {file}: ask one that has the whole chain (--home)")
        answer = {
            "blocks": compared,
            "forged": [_described(forgery) for forgery in forgeries],
            "sent": _send(reader, home, chain_id, forgeries) if is_sent else [],
        }
    emit(answer, as_json, _render)


def _known(reader: "Reader", height: int) -> tuple["SignedHeader", "ValidatorSet"] | None:
    """The real block of a height, with those who signed it."""
    from bflnode.consensus.light import SignedHeader, set_of
    from bflnode.consensus.tables import Validators

    found = reader.call("commit", height=height)
    if found is None:
        return None
    signed, validators = bytes.fromhex(found["signed"]), bytes.fromhex(found["validators"])
    own = set_of(Validators.from_bytes(validators, max_bytes=len(validators)))
    return SignedHeader.from_bytes(signed, max_bytes=len(signed)), own


def _described(forgery: "Forgery") -> dict[str, Any]:
    from bflnode.consensus.keys import account_text

    return {
        "height": forgery.real.header.height,
        "forged": forgery.forged.header.id.hex(),
        "real": forgery.real.header.id.hex(),
        "forged_round": forgery.forged.commit.round,
        "real_round": forgery.real.commit.round,
        "offenders": [account_text(evidence.offender) for evidence in forgery.evidence],
    }


def _send(
    reader: "Reader", home: "Home", chain_id: "ChainId", forgeries: tuple["Forgery", ...]
) -> list[dict[str, Any]]:
    """Send one evidence for each offender; an account is punished once for ever."""
    from bflnode.consensus.keys import account_text
    from bflnode.consensus.transaction import sign_transaction
    from bflnode.node.rpc.refusals import RpcError

    first = {evidence.offender: evidence for forgery in reversed(forgeries) for evidence in forgery.evidence}
    key, sent = home.load_account_key(), []
    for offender, evidence in first.items():
        transaction = sign_transaction(key, chain_id, evidence)
        try:
            answer = reader.call("broadcast_tx", transaction=transaction.encoded.hex())
        except RpcError as error:
            answer = {"status": "refused", "reason": str(error)}
        sent.append({"offender": account_text(offender), **answer})
    return sent


def _render(answer: dict[str, Any]) -> None:
    if not answer["forged"]:
        click.echo(f"nothing is forged: {answer['blocks']} blocks compared, and this chain has all of them")
    for forged in answer["forged"]:
        facts(
            [
                ("height", forged["height"]),
                ("real block", f"{forged['real']}, round {forged['real_round']}"),
                ("forged block", f"{forged['forged']}, round {forged['forged_round']}"),
                *(("signed both", offender) for offender in forged["offenders"]),
            ]
        )
        if not forged["offenders"]:
            why = (
                "nobody signed both"
                if forged["forged_round"] == forged["real_round"]
                else "the two are of different rounds of agreement, in which a correct validator may vote differently"
            )
            click.echo(f"  no evidence: {why}")
    for sent in answer["sent"]:
        click.echo(f"evidence against {sent['offender']}: {sent.get('reason') or 'sent, ' + sent['id']}")
