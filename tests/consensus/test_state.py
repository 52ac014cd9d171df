"""State: the root's definition, views on top of one another, and typed access."""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated

import pytest

from bflnode.consensus.encoding import encode
from bflnode.consensus.merkle import merkle_root
from bflnode.consensus.records import Record
from bflnode.consensus.state import BUCKETS, Cell, StateReader, StateTree, StateView, Table, bucket_of
from bflnode.consensus.types import AtMost, Between

ENTRIES = {b"a/%d" % number: b"value %d" % number for number in range(1000)}


@dataclass(frozen=True, slots=True)
class Account(Record):
    balance: Annotated[int, Between(0, 100)]
    note: Annotated[bytes, AtMost(10_000)]


ACCOUNTS = Table(b"account/", Account)
TREASURY = Cell(b"treasury", Account)


def defined_root(entries: dict[bytes, bytes]) -> bytes:
    """The definition in the protocol, without any bookkeeping."""
    buckets: list[list[bytes]] = [[] for _ in range(256)]
    for key in sorted(entries):
        buckets[sha256(key).digest()[0]].append(encode((key, entries[key])))
    return merkle_root([merkle_root(bucket) for bucket in buckets])


def test_root_is_the_one_of_the_definition() -> None:
    assert StateTree(ENTRIES.items()).root == defined_root(ENTRIES)
    assert StateTree().root == defined_root({})


def test_root_does_not_depend_on_the_order_of_insertion() -> None:
    assert StateTree(reversed(list(ENTRIES.items()))).root == StateTree(ENTRIES.items()).root


@pytest.mark.parametrize("other", [{b"b": b"c"}, {b"a": b"d"}, {b"a": b"c", b"b": b""}, {}, {b"": b"ac"}, {b"ac": b""}])
def test_root_covers_keys_values_and_their_border(other: dict[bytes, bytes]) -> None:
    assert StateTree(other.items()).root != StateTree([(b"a", b"c")]).root


def test_root_after_says_what_apply_gives_and_changes_nothing() -> None:
    tree = StateTree(ENTRIES.items())
    changes = {b"a/5": b"changed", b"a/6": None, b"new": b"entry", b"never there": None}
    expected = {**ENTRIES, b"a/5": b"changed", b"new": b"entry"}
    del expected[b"a/6"]
    before = tree.root
    predicted = tree.root_after(changes)
    assert (tree.root, dict(tree.entries()), len(tree)) == (before, ENTRIES, 1000)
    assert tree.root_after(ENTRIES) == before
    tree.apply(changes)
    assert tree.root == predicted == defined_root(expected)
    assert list(tree.entries()) == sorted(expected.items())


def test_applying_and_taking_back_gives_the_old_root() -> None:
    tree = StateTree(ENTRIES.items())
    before = tree.root
    tree.apply({b"a/1": b"x", b"z": b"y"})
    assert tree.root != before
    tree.apply({b"a/1": ENTRIES[b"a/1"], b"z": None})
    assert tree.root == before


def test_bucket_entries_are_a_partition_of_all_entries() -> None:
    tree = StateTree(ENTRIES.items())
    buckets = [tree.bucket_entries(number) for number in range(BUCKETS)]
    assert sorted(entry for bucket in buckets for entry in bucket) == sorted(ENTRIES.items())
    assert all(bucket_of(key) == number for number, bucket in enumerate(buckets) for key, _ in bucket)
    assert tree.bucket_roots == tuple(merkle_root([encode(entry) for entry in bucket]) for bucket in buckets)


@pytest.mark.parametrize("prefix", [b"", b"a", b"a\xff", b"\xff", b"\xff\xff", b"b", b"c"])
def test_scan_gives_exactly_the_keys_with_the_prefix_in_order(prefix: bytes) -> None:
    keys = [b"", b"a", b"a\xfe", b"a\xff", b"a\xff\x00", b"a\xff\xff", b"b", b"\xff", b"\xff\xff\x01"]
    expected = [(key, b"v") for key in sorted(keys) if key.startswith(prefix)]
    entries = [(key, b"v") for key in keys]
    assert list(StateTree(entries).scan(prefix)) == expected
    split = StateView(StateTree(entries[::2]))
    for key, value in entries[1::2]:
        split.put(key, value)
    assert list(split.scan(prefix)) == expected


def test_view_shows_its_changes_and_leaves_the_base_alone() -> None:
    tree = StateTree([(b"a", b"1"), (b"b", b"2"), (b"d", b"4")])
    view = StateView(tree)
    view.put(b"b", b"two")
    view.put(b"c", b"3")
    view.delete(b"d")
    view.delete(b"e")
    assert [view.get(key) for key in (b"a", b"b", b"c", b"d", b"e")] == [b"1", b"two", b"3", None, None]
    assert list(view.scan(b"")) == [(b"a", b"1"), (b"b", b"two"), (b"c", b"3")]
    assert view.changes == {b"b": b"two", b"c": b"3", b"d": None, b"e": None}
    assert list(tree.entries()) == [(b"a", b"1"), (b"b", b"2"), (b"d", b"4")]


def test_deleted_key_can_be_put_again() -> None:
    view = StateView(StateTree([(b"a", b"1")]))
    view.delete(b"a")
    view.put(b"a", b"2")
    assert (view.get(b"a"), view.changes) == (b"2", {b"a": b"2"})


def test_nested_view_is_seen_below_only_once_committed() -> None:
    outer = StateView(StateTree([(b"a", b"1"), (b"b", b"2")]))
    outer.put(b"c", b"3")
    inner = outer.nested()
    inner.delete(b"c")
    inner.delete(b"a")
    inner.put(b"d", b"4")
    assert list(inner.scan(b"")) == [(b"b", b"2"), (b"d", b"4")]
    assert list(outer.scan(b"")) == [(b"a", b"1"), (b"b", b"2"), (b"c", b"3")]
    inner.commit()
    assert inner.changes == {}
    assert list(outer.scan(b"")) == [(b"b", b"2"), (b"d", b"4")]
    assert outer.changes == {b"c": None, b"a": None, b"d": b"4"}


def test_dropped_nested_view_leaves_no_trace() -> None:
    outer = StateView(StateTree())
    outer.nested().put(b"a", b"1")
    assert (outer.get(b"a"), outer.changes) == (None, {})


def test_committing_a_view_on_a_tree_is_our_own_fault() -> None:
    with pytest.raises(AssertionError, match="nested"):
        StateView(StateTree()).commit()


def test_loop_over_a_scan_may_change_the_view() -> None:
    """The scan shows the state as it was when it began, at every level."""
    outer = StateView(StateTree([(b"a", b"1"), (b"c", b"3")]))
    outer.put(b"b", b"2")
    inner = outer.nested()
    seen = []
    for key, value in inner.scan(b""):
        seen.append((key, value))
        inner.put(key + b"!", value)
        inner.delete(b"c")
    assert seen == [(b"a", b"1"), (b"b", b"2"), (b"c", b"3")]
    assert [key for key, _ in inner.scan(b"")] == [b"a", b"a!", b"b", b"b!", b"c!"]


def test_table_keeps_records_by_key_under_its_prefix() -> None:
    view = StateView(StateTree([(b"accounting", b"\x01")]))
    for key in (b"bob", b"al"):
        ACCOUNTS.put(view, key, Account(len(key), key))
    assert ACCOUNTS.get(view, b"bob") == Account(3, b"bob")
    assert ACCOUNTS.get(view, b"carl") is None
    assert list(ACCOUNTS.scan(view)) == [(b"al", Account(2, b"al")), (b"bob", Account(3, b"bob"))]
    assert list(ACCOUNTS.scan(view, b"b")) == [(b"bob", Account(3, b"bob"))]
    assert view.get(b"account/bob") == Account(3, b"bob").to_bytes()
    ACCOUNTS.delete(view, b"bob")
    assert [key for key, _ in ACCOUNTS.scan(view)] == [b"al"]


def test_cell_keeps_one_record() -> None:
    view = StateView(StateTree())
    assert TREASURY.get(view) is None
    TREASURY.put(view, Account(1, b""))
    assert TREASURY.get(view) == Account(1, b"")
    TREASURY.delete(view)
    assert TREASURY.get(view) is None


def test_equal_bytes_are_decoded_as_the_type_of_the_table() -> None:
    """Decoding is remembered by type and bytes: two tables never share a record."""

    @dataclass(frozen=True, slots=True)
    class Other(Record):
        amount: Annotated[int, Between(0, 100)]
        data: Annotated[bytes, AtMost(10)]

    tree = StateTree([(b"account/a", Account(5, b"x").to_bytes()), (b"other/a", Account(5, b"x").to_bytes())])
    assert ACCOUNTS.get(tree, b"a") == Account(5, b"x")
    assert Table(b"other/", Other).get(tree, b"a") == Other(5, b"x")


@pytest.mark.parametrize("size", [0, 10_000])
def test_remembered_records_follow_their_bytes(size: int) -> None:
    tree = StateTree()
    for balance in (1, 2, 1):
        account = Account(balance, bytes(size))
        tree.apply({b"treasury": account.to_bytes()})
        assert TREASURY.get(tree) == account


def test_record_in_a_view_is_bytes_to_whoever_asks_for_bytes() -> None:
    outer = StateView(StateTree())
    inner = outer.nested()
    TREASURY.put(inner, Account(1, b"x"))
    data = Account(1, b"x").to_bytes()
    assert (inner.get(b"treasury"), list(inner.scan(b"t")), inner.changes) == (
        data,
        [(b"treasury", data)],
        {b"treasury": data},
    )
    inner.commit()
    assert (TREASURY.get(outer.nested()), outer.changes) == (Account(1, b"x"), {b"treasury": data})


def test_reading_a_record_as_another_type_is_our_own_fault() -> None:
    @dataclass(frozen=True, slots=True)
    class Other(Record):
        flag: bool

    view = StateView(StateTree())
    TREASURY.put(view, Account(1, b""))
    with pytest.raises(AssertionError, match="Account where Other belongs"):
        Cell(b"treasury", Other).get(view)


def test_broken_bytes_in_our_own_state_are_our_own_fault() -> None:
    """A Rejection would blame the peer whose transaction happens to be looked at."""
    with pytest.raises(AssertionError, match="broken Account"):
        TREASURY.get(StateTree([(b"treasury", b"\xc0")]))


def test_anything_with_get_and_scan_is_a_base() -> None:
    class Snapshot:
        def get(self, key: bytes) -> bytes | None:
            return ENTRIES.get(key)

        def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
            return iter(sorted(entry for entry in ENTRIES.items() if entry[0].startswith(prefix)))

    reader: StateReader = Snapshot()
    assert list(StateView(reader).scan(b"a/99")) == list(StateTree(ENTRIES.items()).scan(b"a/99"))
