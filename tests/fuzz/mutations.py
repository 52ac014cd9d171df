"""Small damage to valid inputs: what a bit error, a cut connection or an attacker with an editor makes of a message.

Each mutation is a function of the input, a number and a second input, so that hypothesis and the coverage-guided
fuzzer draw the same damage, and a finding can be made again from its numbers.
"""

from collections.abc import Callable
from random import Random
from typing import Any

import msgpack

Mutation = Callable[[bytes, int, bytes], bytes]

INTERESTING_INTEGERS = (0, 1, -1, 127, 128, 255, 256, 2**15, 2**16, 2**31, 2**32, 2**53, 2**53 + 1, 2**63 - 1, -(2**63))
LARGE_LENGTHS = (b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x01\x00\x00", b"\xff\xff\xff\xff\xff\xff\xff\xff")
WORDS = (
    *(b"[" * 400, b"{" * 400, b"(" * 100, b"-" * 400, b'{"a":' * 300, b"9" * 400, b"1e999", b"NaN", b"null", b"\xff"),
    *(b"\\ud800", b"\\u001b[2J", b"\x00", b"\x1b[31m", b"\r\n", b'"', b"'", b"\xf0\x9f\xa6\x8a", b"../../etc/passwd"),
    *(b"\xc0", b"\xdd\xff\xff\xff\xff", b"\x91" * 40, b"\xdc\x10\x00" * 40, b"\xc7\x00\x01", b"\xcb", b"true", b"0"),
)


LONGEST_PLAIN_BYTES = 64
"""A signature; longer byte strings are encodings of something inside."""


def flip_bit(data: bytes, number: int, _donor: bytes) -> bytes:
    if not data:
        return data
    position = number // 8 % len(data)
    return data[:position] + bytes([data[position] ^ (1 << number % 8)]) + data[position + 1 :]


def truncate(data: bytes, number: int, _donor: bytes) -> bytes:
    return data[: number % (len(data) + 1)]


def extend(data: bytes, number: int, donor: bytes) -> bytes:
    return data + donor[: number % (len(donor) + 1)] if number % 2 else data + bytes([number // 2 % 256])


def splice(data: bytes, number: int, donor: bytes) -> bytes:
    """The beginning of one input and the end of another."""
    return data[: number % (len(data) + 1)] + donor[number // 7 % (len(donor) + 1) :]


def repeat(data: bytes, number: int, _donor: bytes) -> bytes:
    """A piece of the input twice."""
    start = number % (len(data) + 1)
    end = min(len(data), start + 1 + number // 11 % 64)
    return data[:end] + data[start:]


def remove(data: bytes, number: int, _donor: bytes) -> bytes:
    start = number % (len(data) + 1)
    return data[:start] + data[start + 1 + number // 11 % 64 :]


def inflate_length(data: bytes, number: int, _donor: bytes) -> bytes:
    """Bytes that may be a length become a large one."""
    length = LARGE_LENGTHS[number % len(LARGE_LENGTHS)]
    position = number // 5 % (len(data) + 1)
    return data[:position] + length + data[position + len(length) :]


def insert_word(data: bytes, number: int, _donor: bytes) -> bytes:
    position = number // len(WORDS) % (len(data) + 1)
    return data[:position] + WORDS[number % len(WORDS)] + data[position:]


def change_value(data: bytes, number: int, donor: bytes) -> bytes:
    """Another value in a place of a msgpack tree: still well-formed, so that it gets past the first check."""
    try:
        tree: Any = msgpack.unpackb(data, use_list=True, strict_map_key=False)
        spare: Any = msgpack.unpackb(donor, use_list=True, strict_map_key=False)
        random = Random(number)
        changed = _changed(tree, random, _part(spare, random))
        packed: bytes = msgpack.packb(changed, use_bin_type=True)
    except (ValueError, OverflowError, TypeError, msgpack.UnpackException):
        return flip_bit(data, number, donor)
    return packed


MUTATIONS: tuple[Mutation, ...] = (
    *(flip_bit, truncate, extend, splice, repeat, remove, inflate_length, insert_word),
    *(change_value, change_value, change_value),
)
"""`change_value` three times: it alone reaches what stands behind the canonical encoding."""


def _part(tree: Any, random: Random) -> Any:
    """Some subtree."""
    while isinstance(tree, list) and tree and random.random() < 0.8:
        tree = random.choice(tree)
    return tree


def _changed(tree: Any, random: Random, spare: Any) -> Any:
    """The tree with one part changed."""
    if isinstance(tree, list) and tree and random.random() < 0.85:
        index = random.randrange(len(tree))
        action = random.randrange(8)
        if action == 0:
            return tree[:index] + tree[index + 1 :]
        if action == 1:
            return [*tree[:index], tree[index], *tree[index:]]
        if action == 2:
            return [*tree[:index], spare, *tree[index:]]
        return [*tree[:index], _changed(tree[index], random, spare), *tree[index + 1 :]]
    if isinstance(tree, bytes) and len(tree) > LONGEST_PLAIN_BYTES and random.random() < 0.8:
        return change_value(tree, random.randrange(2**32), b"\x90")
    if isinstance(tree, bytes) and tree and random.random() < 0.7:
        return random.choice((flip_bit, truncate, extend))(tree, random.randrange(2**20), b"\x00\xff")
    if type(tree) is int and random.random() < 0.8:
        return random.choice((*INTERESTING_INTEGERS, tree + 1, tree - 1, -tree))
    return random.choice((spare, [], b"", "", True, 0, [tree], "\x1b[2J", b"\x00" * 32))
