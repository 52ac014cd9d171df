"""The address book: what is proven, what is hearsay, and what a liar can't do to it."""

from pathlib import Path

import pytest

from bflnode.node.p2p.address_book import (
    HEARSAY_FAILURES,
    MAX_HEARSAY,
    MAX_PER_HOST,
    MAX_PER_SOURCE,
    MAX_PROVEN,
    PROVEN_FAILURES,
    AddressBook,
)
from bflnode.node.p2p.peer_identity import peer_id_text
from bflnode.node.p2p.streams import PeerId

LIAR = PeerId("liar")


def address(number: int, host: str | None = None) -> str:
    seed = number.to_bytes(32, "big")
    return f"/ip4/{host or f'10.{number >> 16}.{number >> 8 & 255}.{number & 255}'}/tcp/26656/p2p/{peer_id_text(seed)}"


def peer(number: int) -> PeerId:
    return PeerId(peer_id_text(number.to_bytes(32, "big")))


class Clock:
    def __init__(self) -> None:
        self.now = 1000

    def __call__(self) -> int:
        self.now += 1
        return self.now


def book(path: Path | None = None) -> AddressBook:
    return AddressBook(Clock(), path)


def test_what_was_met_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    first = book(path)
    first.met(peer(1), address(1))
    assert first.heard(address(2), LIAR)
    first.save()
    again = book(path)
    assert again.sample(10) == (address(1), address(2))
    assert (len(again), again.proven, again.proven_addresses(10)) == (2, 1, (address(1),))


def test_what_was_met_last_and_failed_least_comes_first() -> None:
    known = book()
    for number in (1, 2, 3):
        known.met(peer(number), address(number))
    known.failed(peer(3), address(3))
    known.heard(address(4), LIAR)
    assert known.sample(3) == (address(2), address(1), address(4))


def test_hearsay_never_pushes_out_what_is_proven_and_is_bounded() -> None:
    known = book()
    known.met(peer(1), address(1))
    for number in range(2, 400):
        known.heard(address(number), PeerId(f"source {number // 10}"))
    assert peer(1) in known
    assert len(known) == MAX_HEARSAY + 1


def test_a_liar_fills_its_own_share_only() -> None:
    known = book()
    taken = [known.heard(address(number), LIAR) for number in range(200)]
    assert sum(taken) == MAX_PER_SOURCE
    assert known.heard(address(2000), PeerId("honest"))


def test_many_liars_can_not_aim_at_one_host() -> None:
    known = book()
    taken = [known.heard(address(number, "192.0.2.7"), PeerId(f"liar {number}")) for number in range(100)]
    assert sum(taken) == MAX_PER_HOST


def test_proven_addresses_are_bounded_and_the_oldest_gives_way() -> None:
    known = book()
    for number in range(MAX_PROVEN + 5):
        known.met(peer(number), address(number))
    assert len(known) == MAX_PROVEN
    assert peer(4) not in known
    assert peer(5) in known


def test_an_address_that_fails_is_dropped_hearsay_soon_and_a_proven_one_late() -> None:
    known = book()
    known.met(peer(1), address(1))
    known.heard(address(2), LIAR)
    for _ in range(HEARSAY_FAILURES):
        known.failed(peer(1), address(1))
        known.failed(peer(2), address(2))
    assert (peer(1) in known, peer(2) in known) == (True, False)
    for _ in range(PROVEN_FAILURES):
        known.failed(peer(1), address(1))
    assert len(known) == 0


def test_a_dial_of_another_address_of_a_peer_says_nothing_of_this_one() -> None:
    known = book()
    known.met(peer(1), address(1))
    known.failed(peer(1), address(1, "192.0.2.7"))
    assert known.proven_addresses(1) == (address(1),)


@pytest.mark.parametrize(
    "text", ["", "nonsense", "/ip4/10.0.0.1/tcp/1", f"/p2p/{peer(1)}", address(1) + "/" + "x" * 300]
)
def test_what_is_no_address_is_not_taken(text: str) -> None:
    known = book()
    assert not known.heard(text, LIAR)
    assert len(known) == 0


@pytest.mark.parametrize(
    "content", ["", "{", '{"peers": 3}', '{"peers": [{"address": "x"}]}', '{"peers": [{"address": 3}]}', "[" * 3000]
)
def test_a_damaged_file_is_set_aside_and_the_node_starts_empty(tmp_path: Path, content: str) -> None:
    path = tmp_path / "peers.json"
    path.write_text(content)
    known = book(path)
    assert len(known) == 0
    assert (tmp_path / "peers.damaged").read_text() == content
    known.met(peer(1), address(1))
    known.save()
    assert len(book(path)) == 1
