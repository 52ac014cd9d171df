"""docs/wire.md is what other implementations are written from: its ids, kinds, limits and examples are the code's."""

import re
from pathlib import Path

import pytest

from bflnode.consensus.blob import CHUNK_BYTES, manifest_of
from bflnode.consensus.encoding import encode
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.transaction import BODIES, Kind, Transfer, sign_transaction
from bflnode.consensus.types import TOKEN, AccountId, ChainId
from bflnode.node.p2p import messages, streams
from bflnode.node.p2p.notices import NOTICE
from bflnode.node.p2p.peer_identity import peer_id_text
from bflnode.node.p2p.streams import framed

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "wire.md").read_text(encoding="utf-8")
ROWS = [
    tuple(cell.strip() for cell in line.strip("|").split("|")) for line in PAGE.splitlines() if line.startswith("|")
]
SEED = bytes([7]) * 32
KEY = SecretKey.from_seed(SEED)
CHAIN = ChainId(bytes(range(32)))


def test_the_page_names_exactly_the_protocols_that_there_are() -> None:
    named = set(re.findall(r"/bflnode/[a-z-]+/\d+", PAGE))
    assert named == {*messages.PUSHES, *messages.REQUESTS, NOTICE}


def test_the_page_names_every_kind_of_transaction_with_its_number() -> None:
    listed = {row[0] for row in ROWS if re.fullmatch(r"\d+ [A-Z_]+", row[0])}
    assert listed == {f"{kind.value} {kind.name}" for kind in Kind}


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("request", streams.MAX_REQUEST_BYTES),
        ("answer", streams.MAX_ANSWER_BYTES),
        ("push", streams.MAX_PUSH_BYTES),
        ("gossip message", messages.MAX_GOSSIP_BYTES),
    ],
)
def test_limits_are_the_codes(name: str, size: int) -> None:
    assert [row[1] for row in ROWS if row[0] == name and row[1].replace(",", "").isdigit()] == [f"{size:,}"]


def test_the_number_of_fields_of_each_body_is_the_codes() -> None:
    """One comma between two fields, outside inner brackets."""
    for kind, body in BODIES.items():
        [text] = [row[1] for row in ROWS if row[0] == f"{kind.value} {kind.name}"]
        fields = len(body.__dataclass_fields__)
        assert _items(text) == fields, (kind, text)


def _items(text: str) -> int:
    """Items of the array that a text begins with."""
    depth, commas = 0, 0
    for position, character in enumerate(text):
        depth += (character in "[(") - (character in "])")
        commas += character == "," and depth == 1
        if not depth:
            return commas + 1 if text[1:position].strip() else 0
    raise AssertionError(f"no array in {text!r}")


def test_the_example_of_the_encoding_is_right() -> None:
    value = (1, -1, 128, 300, -200, True, b"\x00\xff", "id", (), (b"",))
    [shown] = re.findall(r"^= ([0-9a-f ]+)$", PAGE, flags=re.MULTILINE)
    assert encode(value).hex() == shown.replace(" ", "")


def test_the_examples_are_right() -> None:
    peer = peer_id_text(SEED)
    signed = messages.hello_payload(peer, KEY.account)
    transfer = sign_transaction(KEY, CHAIN, Transfer(AccountId(bytes(32)), TOKEN), nonce=3)
    manifest = manifest_of([b"x" * CHUNK_BYTES + b"y"])
    expected = [
        *(KEY.account.hex(), peer, signed.hex(), KEY.sign("hello", CHAIN, signed).hex()),
        *(transfer.payload.hex(), transfer.id.hex(), transfer.signature.hex()),
        framed(messages.BlocksRequest(1, 32).to_bytes()).hex(),
        *(manifest.to_bytes().hex(), manifest.id.hex()),
    ]
    examples = PAGE.split("## 8. Examples")[1]
    assert re.findall(r"\| `([0-9A-Za-z]+)` \|$", examples, flags=re.MULTILINE) == expected
