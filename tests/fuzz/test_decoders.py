"""Every decoder of foreign bytes keeps the rule of `rule`: with what it is for, damage, attacks, old findings."""

import logging
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bflnode.consensus.rejection import Reason, Rejection
from tests.fuzz import corpus
from tests.fuzz.mutations import LARGE_LENGTHS, MUTATIONS, WORDS, inflate_length
from tests.fuzz.rule import (
    Target,
    cpu_limit_seconds,
    cpu_seconds,
    is_accepted,
    memory_limit,
    peak_memory,
)
from tests.fuzz.targets import targets

NAMES = tuple(targets())

LARGEST_ATTACK_BYTES = 64 * 1024
"""Attacks on time and memory have this size, or the largest that the decoder takes: enough for a square to show."""

MAX_CORPUS_BYTES = 1_000_000


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What a node would log about thousands of damaged inputs."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(params=NAMES)
def target(request: pytest.FixtureRequest) -> Target:
    return targets()[request.param]


def test_every_seed_is_accepted(target: Target) -> None:
    """Else damage to it would test nothing."""
    seeds = target.seeds()
    assert len(seeds) >= 1
    assert all(is_accepted(target, seed) for seed in seeds)


@pytest.mark.parametrize("name", [name for name in NAMES if corpus.kept(name)])
def test_kept_inputs_keep_the_rule(name: str) -> None:
    """Findings of the past, and an input for every line that the fuzzer has reached."""
    for data in corpus.kept(name).values():
        is_accepted(targets()[name], data)


def test_the_corpus_is_small_and_names_only_targets() -> None:
    files = sorted(corpus.FOLDER.glob("*"))
    assert {file.stem for file in files} <= set(NAMES)
    assert sum(file.stat().st_size for file in files) < MAX_CORPUS_BYTES


damage = st.lists(st.tuples(st.sampled_from(MUTATIONS), st.integers(0, 2**32 - 1)), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_inputs_keep_the_rule(target: Target, data: st.DataObject) -> None:
    inputs = st.sampled_from(list(target.seeds()))
    damaged, donor = data.draw(inputs), data.draw(inputs)
    for mutation, number in data.draw(damage):
        damaged = mutation(damaged, number, donor)
    is_accepted(target, damaged[: target.limit_bytes])


def attacks(target: Target) -> Iterator[bytes]:
    """Inputs that cost much where a decoder reads before it checks: nesting, announced lengths, repetition."""
    size = min(target.limit_bytes, LARGEST_ATTACK_BYTES)
    seed = max(target.seeds(), key=len)
    for piece in (*WORDS, seed, b"\xc2", b"\xa1x", b"\x80"):
        yield (piece * (size // len(piece) + 1))[:size]
    for number in range(2 * len(LARGE_LENGTHS)):
        yield inflate_length(seed, number * 7, b"")
    for head in (b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff"):
        yield head + bytes(size - len(head))


def test_attacks_cost_bounded_memory(target: Target) -> None:
    peaks = ((data, peak_memory(target, data)) for data in attacks(target))
    assert [(data[:40], peak) for data, peak in peaks if peak > memory_limit(data)] == []


@pytest.mark.parametrize("name", [name for name, target in targets().items() if target.is_measured])
def test_attacks_cost_bounded_time(name: str) -> None:
    target = targets()[name]
    times = ((data, cpu_seconds(target, data)) for data in attacks(target))
    assert [(data[:40], seconds) for data, seconds in times if seconds > cpu_limit_seconds(target, data)] == []


def broken(decode: Callable[[bytes], bytes | None]) -> Target:
    return Target(decode=decode, refusals=(Rejection,), seeds=lambda: [b"x"])


def refusing(fault: str) -> Target:
    def refuse(_: bytes) -> bytes:
        raise ValueError(fault)

    return Target(decode=refuse, refusals=(ValueError,), seeds=lambda: [b"x"])


def test_a_second_encoding_is_noticed() -> None:
    with pytest.raises(AssertionError, match="encodes to"):
        is_accepted(broken(bytes.lower), b"X")


def test_an_error_of_another_type_is_noticed() -> None:
    with pytest.raises(ZeroDivisionError):
        is_accepted(broken(lambda data: bytes(1 // len(data))), b"")


@pytest.mark.parametrize("fault", ["", "x" * 2_001, "a\x1b[2Jb", "half of a pair: \ud800", "bell \x07"])
def test_a_refusal_that_is_not_for_people_is_noticed(fault: str) -> None:
    with pytest.raises(AssertionError, match="a refusal"):
        is_accepted(refusing(fault), b"x")


def test_a_refusal_counts_as_one_and_not_as_a_finding() -> None:
    def refuse(_: bytes) -> bytes:
        raise Rejection(Reason.MALFORMED)

    assert not is_accepted(broken(refuse), b"x")


def test_memory_beyond_the_bound_is_noticed() -> None:
    greedy = broken(lambda data: bytes(64 * 2**20)[:0] + data)
    assert peak_memory(greedy, b"x") > memory_limit(b"x")


def test_minimising_keeps_the_smallest_input_of_each_path() -> None:
    """One refused by its size, one by its content, one accepted: three paths through the codec."""
    vote = targets()["vote"]
    seed = vote.seeds()[0]
    chosen = corpus.smallest_that_reach_all(vote, [seed, seed[:-1], b"", seed, seed[:5]])
    assert b"" in chosen
    assert seed in chosen
    assert len(chosen) < 5
