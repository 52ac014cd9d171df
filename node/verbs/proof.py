"""The verbs about proofs: have one made by a node, and check one offline, without a home, a node or torch."""

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import (
    VERIFICATION_FAILED,
    CommandError,
    Function,
    examples,
    json_option,
    reading,
    reading_options,
    require_free,
    task_option,
)
from .output import duration, emit, facts, moment

if TYPE_CHECKING:
    from bflnode.consensus.light import Trust
    from bflnode.consensus.proof_file import CheckedProof, ProofBody
    from bflnode.node.home import Home

DURATION_UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

COPY_BYTES = 1024 * 1024
"""Piece in which a model file is hashed."""


def _as_trusting_period(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """A length of time, or "any"."""
    from bflnode.consensus.light import ANY_AGE_MS

    return ANY_AGE_MS if value == "any" else _as_milliseconds(context, parameter, value)


def _as_milliseconds(_context: click.Context, _parameter: click.Parameter, value: str | None) -> int | None:
    """A length of time such as 90s, 10m, 12h or 14d."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,9})([smhd])", value)
    if found is None:
        raise click.BadParameter(f"{value!r} is no length of time: write one like 90s, 10m, 12h or 14d.")
    return int(found[1]) * DURATION_UNITS_MS[found[2]]


@click.group(
    epilog=examples(
        "bflnode proof balance -o balance.proof",
        "bflnode proof model --client 3fa9 --round 3 -o model.proof",
        "bflnode proof check model.proof --genesis genesis.json --model theirs.safetensors",
    )
)
def proof() -> None:
    """Prove a balance, a model or a transaction to somebody who doesn't follow the chain, and check such a proof."""


def _making_options(function: Function) -> Function:
    """What all verbs have that make a proof."""
    for option in (
        click.option("--force", is_flag=True, help="Write over an existing file."),
        click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write; default: a name by kind."),
        click.option(
            "--from",
            "start",
            type=click.IntRange(0),
            default=0,
            show_default=True,
            metavar="HEIGHT",
            help="Block that the proof starts from, which its reader trusts; 0 is the genesis.",
        ),
    ):
        function = option(function)
    return function


@proof.command(
    "balance",
    epilog=examples(
        "bflnode proof balance",
        "bflnode proof balance 3fa9 -o theirs.proof",
        "bflnode proof balance 3fa9 --from 1200 --json",
    ),
)
@click.argument("account", default="")
@_making_options
@reading_options
def proof_balance(account: str, start: int, output: Path | None, force: bool, home: "Home", as_json: bool) -> None:
    """Prove the balance of ACCOUNT after the last block, or that there is no such account; default: this node's.

    An account that doesn't exist must be given whole, with its checksum.
    """
    _make(home, as_json, output or Path("balance.proof"), force, kind="balance", reference=account, start=start)


@proof.command(
    "model",
    epilog=examples("bflnode proof model --round 3", "bflnode proof model --client 3fa9 --round 3 -o model.proof"),
)
@click.option("--client", default="", metavar="ACCOUNT", help="Whose model; first digits do; default: this node's.")
@click.option("--round", "number", default="latest", show_default=True, metavar="N", help="Which learning round.")
@_making_options
@reading_options
@task_option
def proof_model(home: "Home", as_json: bool, output: Path | None, force: bool, client: str, **asked: Any) -> None:
    """Prove that a client's model is in a global model: both ids, cluster, weight and payout."""
    _make(home, as_json, output or Path("model.proof"), force, kind="model", reference=client, **asked)


@proof.command("tx", epilog=examples("bflnode proof tx 5f0c…", "bflnode proof tx 5f0c… -o payment.proof --json"))
@click.argument("identifier", metavar="ID")
@_making_options
@reading_options
def proof_tx(identifier: str, start: int, output: Path | None, force: bool, home: "Home", as_json: bool) -> None:
    """Prove that a transaction is in a block that is final."""
    _make(home, as_json, output or Path("tx.proof"), force, kind="tx", reference=identifier, start=start)


def _make(home: "Home", as_json: bool, output: Path, force: bool, **asked: Any) -> None:
    """Have a proof made, see that it proves what was asked for, and write it."""
    from .proof_report import proven_json

    require_free(output, force)
    with reading(home) as reader:
        data = _proof_bytes(reader.call("proof", **asked))
    checked = _checked_by_its_start(data)
    proven = proven_json(checked.proven)
    _require_what_was_asked(proven, **asked)
    partial = output.with_name(output.name + ".partial")
    try:
        partial.write_bytes(data)
        partial.replace(output)
    except OSError as error:
        raise CommandError(f"cannot write {output}: {error.strerror}") from error
    header, trusted = checked.verified.header, checked.verified.trusted
    answer = {
        "kind": asked["kind"],
        "proven": proven,
        "chain_id": header.chain_id.hex(),
        "height": header.height,
        "block": header.id.hex(),
        "time_ms": header.time_ms,
        "trust": trusted.chain_id.hex() if trusted.height == 0 else f"{trusted.height}:{trusted.id.hex()}",
        "output": str(output),
        "size_bytes": len(data),
    }
    emit(answer, as_json, _render_made)


def _proof_bytes(answer: Any) -> bytes:
    """The file in a node's answer, which may be any JSON where the node is somebody else's."""
    text = answer.get("proof") if isinstance(answer, dict) else None
    try:
        return bytes.fromhex(text if isinstance(text, str) else "-")
    except ValueError as error:
        raise CommandError("the node's answer holds no proof: ask another node", VERIFICATION_FAILED) from error


def _require_what_was_asked(proven: dict[str, Any], *, kind: str, reference: str, number: str = "", **_: Any) -> None:
    """A node may prove something true that nobody asked for."""
    name = {"balance": "account", "model": "client", "tx": "id"}[kind]
    is_right = str(proven.get(name, "")).startswith(reference.strip().lower())
    if number.isdigit():
        is_right = is_right and proven.get("round") == int(number)
    if not is_right:
        raise CommandError("the node proves something else than was asked for: ask another node", VERIFICATION_FAILED)


def _render_made(answer: dict[str, Any]) -> None:
    from .proof_report import proven_facts

    lines = proven_facts(answer["kind"], answer["proven"])
    facts([*lines, ("as of", f"block {answer['height']}, {moment(answer['time_ms'])}")])
    click.echo(f"wrote {answer['output']}, {answer['size_bytes']} bytes; who trusts this start checks it with")
    click.echo(f"  bflnode proof check {answer['output']} --trust {answer['trust']}")


@proof.command(
    "check",
    epilog=examples(
        "bflnode proof check balance.proof --genesis genesis.json --max-age 10m",
        "bflnode proof check balance.proof --trust 1200:77c1… --trusting-period 14d",
        "bflnode proof check model.proof --genesis genesis.json --model theirs.safetensors --json",
    ),
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--trust", metavar="HEIGHT:ID|CHAIN", default="", help="The block, or the chain's id, that you trust.")
@click.option("--genesis", type=click.Path(path_type=Path), help="The genesis file that you trust.")
@click.option(
    "--trusting-period",
    metavar="TIME|any",
    callback=_as_trusting_period,
    help="Refuse if the trusted block is older; default: as long as stake stays bound (without a genesis 21d).",
)
@click.option(
    "--max-age", metavar="TIME", callback=_as_milliseconds, help="Refuse if what is proven is older, such as 10m."
)
@click.option("--model", type=click.Path(path_type=Path), help="Also say which proven model this safetensors file is.")
@json_option
def proof_check(
    file: Path,
    trust: str,
    genesis: Path | None,
    trusting_period: int | None,
    max_age: int | None,
    model: Path | None,
    as_json: bool,
) -> None:
    """Check a proof offline, and say what it proves, as of when; exit code 4 names the first fault.

    It takes something that you trust already, from a source other than who gave you the proof: the genesis file of the
    network, its chain id, or the height and id of a block.
    """
    from bflnode.consensus.light import Clock
    from bflnode.consensus.proof_file import check_proof
    from bflnode.consensus.rejection import Rejection

    from .proof_report import check_json, refusal_text

    if bool(trust) == bool(genesis):
        raise click.UsageError("say what you trust: either --trust HEIGHT:ID, --trust CHAIN or --genesis FILE.")
    now_ms = time.time_ns() // 1_000_000
    try:
        body = read_proof(file)
        body, trusted = _with_genesis(body, genesis) if genesis else (body, _parse_trust(trust))
        checked = check_proof(body, trusted, Clock(now_ms, trusting_period))
    except Rejection as rejection:
        fault = refusal_text(rejection)
        raise CommandError(f"{file} proves nothing to you: {fault}", VERIFICATION_FAILED) from rejection
    answer = check_json(checked, now_ms, _unbonding_ms(body, trusted))
    if max_age is not None and answer["age_ms"] > max_age:
        raise CommandError(
            f"{file} is about block {answer['height']}, {duration(answer['age_ms'])} old, and you want at most "
            f"{duration(max_age)}: ask for a new proof, or another node",
            VERIFICATION_FAILED,
        )
    if model is not None:
        answer["model_file"] = _which_model(model, answer)
    emit(answer, as_json, _render_check)


def read_proof(file: Path) -> "ProofBody":
    """Read a proof file, of any size."""
    from bflnode.consensus.proof_file import MAX_PROOF_FILE_BYTES, decode_proof

    try:
        with file.open("rb") as stream:
            return decode_proof(stream.read(MAX_PROOF_FILE_BYTES + 1))
    except OSError as error:
        raise CommandError(f"cannot read {file}: {error.strerror}") from error


def _with_genesis(body: "ProofBody", file: Path) -> tuple["ProofBody", "Trust"]:
    """The proof with a genesis that is trusted in the place of its own."""
    from dataclasses import replace

    from bflnode.consensus.genesis import MAX_GENESIS_TEXT, GenesisError, parse_genesis
    from bflnode.consensus.light import Trust
    from bflnode.consensus.types import BlockId

    try:
        with file.open(encoding="utf-8") as stream:
            genesis = parse_genesis(stream.read(MAX_GENESIS_TEXT + 1))
    except (OSError, UnicodeDecodeError, GenesisError) as error:
        raise CommandError(f"cannot read the genesis {file}: {error}") from error
    chain = replace(body.chain, genesis=genesis.to_bytes())
    return replace(body, chain=chain), Trust(0, BlockId(genesis.chain_id))


def _parse_trust(text: str) -> "Trust":
    from bflnode.consensus.light import Trust
    from bflnode.consensus.types import BlockId

    found = re.fullmatch(r"(?:(\d{1,15}):)?([0-9a-fA-F]{64})", text.strip())
    if found is None:
        raise click.UsageError(f"--trust {text[:90]!r} is neither HEIGHT:ID nor a chain's id: an id has 64 hex digits.")
    return Trust(int(found[1] or 0), BlockId(bytes.fromhex(found[2])))


def _unbonding_ms(body: "ProofBody", trust: "Trust") -> int | None:
    """How long stake stays bound, if the genesis is what is trusted."""
    from bflnode.consensus.genesis import MAX_GENESIS_BYTES, Genesis

    if trust.height != 0:
        return None
    return Genesis.from_bytes(body.chain.genesis, max_bytes=MAX_GENESIS_BYTES).parameters.unbonding_ms


def _checked_by_its_start(data: bytes) -> "CheckedProof":
    """Check a proof as somebody would who trusts its start: what a node answers may be wrong."""
    from bflnode.consensus.genesis import MAX_GENESIS_BYTES, Genesis
    from bflnode.consensus.light import ANY_AGE_MS, Clock, Trust
    from bflnode.consensus.proof_file import check_proof, decode_proof
    from bflnode.consensus.rejection import Rejection
    from bflnode.consensus.types import BlockId

    try:
        body = decode_proof(data)
        anchor = body.chain.anchor
        if anchor is not None:
            trust = Trust(anchor.height, anchor.id)
        else:
            genesis = Genesis.from_bytes(body.chain.genesis, max_bytes=MAX_GENESIS_BYTES)
            trust = Trust(0, BlockId(genesis.chain_id))
        return check_proof(body, trust, Clock(time.time_ns() // 1_000_000, ANY_AGE_MS))
    except Rejection as rejection:
        raise CommandError(
            f"the node's proof doesn't hold ({rejection}): see `bflnode chain verify`, or ask another node",
            VERIFICATION_FAILED,
        ) from rejection


def _render_check(answer: dict[str, Any]) -> None:
    from .proof_report import proven_facts

    trusted = "the genesis" if answer["trusted_height"] == 0 else f"block {answer['trusted_height']}"
    lines = [
        *proven_facts(answer["kind"], answer["proven"]),
        ("as of", f"block {answer['height']}, {moment(answer['time_ms'])}, {duration(answer['age_ms'])} ago"),
        ("block", answer["block"]),
        ("chain", answer["chain_id"]),
        ("trusted", f"{trusted}, {duration(answer['trusted_age_ms'])} old; steps from there: {answer['steps']}"),
    ]
    unbonding_ms = answer["unbonding_ms"]
    if unbonding_ms is not None and answer["trusted_age_ms"] > unbonding_ms:
        caution = (
            f"stake stays bound for {duration(unbonding_ms)} only: its validators may have left; trust a newer block"
        )
        lines.append(("caution", caution))
    if answer["model_file"] is not None:
        lines.append(("model file", f"is the {answer['model_file']}"))
    facts(lines)


def _which_model(file: Path, answer: dict[str, Any]) -> str:
    """Which of the two proven models a file is."""
    from bflnode.consensus.blob import manifest_of
    from bflnode.consensus.rejection import Rejection

    if answer["kind"] != "model":
        raise CommandError(f"--model needs a proof of a model, and this one is of a {answer['kind']}")
    try:
        with file.open("rb") as stream:
            found = manifest_of(iter(lambda: stream.read(COPY_BYTES), b"")).id.hex()
    except OSError as error:
        raise CommandError(f"cannot read {file}: {error.strerror}") from error
    except Rejection as rejection:
        raise CommandError(f"{file} is no model of this network: {rejection}", VERIFICATION_FAILED) from rejection
    proven = answer["proven"]
    if found == proven["output"]:
        return "global model"
    if found == proven["model"]:
        return "client's model"
    raise CommandError(
        f"{file} ({found[:16]}) is neither the client's model ({proven['model'][:16]}) nor the global model "
        f"({proven['output'][:16]}): compare with a file of `bflnode model get`, whose bytes are canonical",
        VERIFICATION_FAILED,
    )
