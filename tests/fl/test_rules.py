"""Rules of aggregation against naive recomputation, and the cases that a chain must have a result for."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from statistics import median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bflnode.fl import aggregation
from bflnode.fl.robust import RULES, RobustRule
from bflnode.fl.rules import PAA, PRIOR_ROWS, Contribution, Rule, outputs
from bflnode.fl.weights import Tensor, serialize

CLASSES = 3
HUGE = float(np.finfo(np.float32).max)

Model = dict[str, Tensor]

floats = st.floats(-100, 100, width=32)


def model(representation: Sequence[float], rows: Sequence[float], count: int = 0) -> Model:
    """Two numbers of representation, a counter, and a decision layer with one weight and one bias a class."""
    return {
        "decision.bias": np.array([-value for value in rows], dtype=np.float32),
        "decision.weight": np.array(rows, dtype=np.float32).reshape(CLASSES, 1),
        "representation.n": np.array(count, dtype=np.int64),
        "representation.w": np.array(representation, dtype=np.float32),
    }


@st.composite
def models(draw: st.DrawFn) -> Model:
    pair = draw(st.lists(floats, min_size=2, max_size=2))
    rows = draw(st.lists(floats, min_size=CLASSES, max_size=CLASSES))
    return model(pair, rows, draw(st.integers(0, 2**40)))


@st.composite
def rounds(draw: st.DrawFn) -> tuple[list[Contribution], tuple[int, ...]]:
    """What some clients give, and their clusters, numbered by first appearance."""
    count = draw(st.integers(1, 7))
    bases = draw(st.lists(models(), min_size=1, max_size=2))
    contributions = [
        Contribution(
            sent=draw(models()),
            received=bases[draw(st.integers(0, len(bases) - 1))],
            holds=draw(st.lists(st.booleans(), min_size=CLASSES, max_size=CLASSES)),
            weight=draw(st.integers(1, 1000)),
        )
        for _ in range(count)
    ]
    raw = [draw(st.integers(0, 2)) for _ in range(count)]
    first = list(dict.fromkeys(raw))
    return contributions, tuple(first.index(label) for label in raw)


def made(rule: Rule, contributions: Sequence[Contribution], labels: Sequence[int]) -> dict[int, Model]:
    return dict(outputs(rule, contributions, labels))


def numbers(tensors: Model, name: str) -> list[float]:
    values: list[float] = tensors[name].reshape(-1).tolist()
    return values


# Naive: one number at a time, in Python's own floats, which are the same IEEE 754 doubles


def naive_mean(values: Sequence[float], weights: Sequence[int]) -> float:
    total = 0.0
    for value, weight in zip(values, weights, strict=True):
        total += value * float(weight)
    return float(np.float32(total / float(sum(weights))))


def naive(rule: Rule, members: Sequence[Contribution], name: str, place: int) -> float:
    """A float of an output: combined, then moved from what was received."""
    sent = [numbers(dict(member.sent), name)[place] for member in members]
    received = [numbers(dict(member.received), name)[place] for member in members]
    weights = [member.weight for member in members]
    combined = naive_mean(sent, weights) if rule.combination.name == "mean" else float(np.float32(median(sent)))
    return naive_step(rule, received, weights, combined)


def naive_step(rule: Rule, received: Sequence[float], weights: Sequence[int], combined: float) -> float:
    if rule.server_step == 1:
        return combined
    before = naive_mean(received, weights)
    return float(np.float32(before + rule.server_step * (combined - before)))


@given(rounds(), st.sampled_from(["mean", "median"]), st.sampled_from([1.0, 1.5, 2.0]))
@settings(max_examples=60)
def test_clusters_are_combined_and_moved_as_a_naive_recomputation_says(
    played: tuple[list[Contribution], tuple[int, ...]], combination: str, step: float
) -> None:
    contributions, labels = played
    rule = Rule(name=PAA, combination=RobustRule(name=combination), server_step=step)
    found = made(rule, contributions, labels)

    assert list(found) == sorted(set(labels))
    for label, output in found.items():
        members = [entry for entry, own in zip(contributions, labels, strict=True) if own == label]
        for name, size in (("representation.w", 2), ("decision.weight", CLASSES), ("decision.bias", CLASSES)):
            assert numbers(output, name) == [naive(rule, members, name, place) for place in range(size)]


@given(rounds(), st.sampled_from(["mean", "median"]), st.sampled_from([1.0, 1.5]), st.sampled_from([0.0, 0.3, 0.75]))
@settings(max_examples=60)
def test_clusters_mix_their_representation_with_everybodys_as_a_naive_recomputation_says(
    played: tuple[list[Contribution], tuple[int, ...]], combination: str, step: float, shared: float
) -> None:
    everybody, labels = played
    rule = Rule(name=PRIOR_ROWS, combination=RobustRule(name=combination), server_step=step, shared=shared)
    found = made(rule, everybody, labels)
    for_all = made(replace(rule, shared=1.0), everybody, labels)[0]

    for label, output in found.items():
        members = [entry for entry, own in zip(everybody, labels, strict=True) if own == label]
        for place in (0, 1):
            own, common = (naive(rule, some, "representation.w", place) for some in (members, everybody))
            assert numbers(output, "representation.w")[place] == float(np.float32(own + shared * (common - own)))
        for name in ("decision.weight", "decision.bias"):
            assert numbers(output, name) == numbers(for_all, name)


@given(rounds(), st.sampled_from(["mean", "median"]), st.sampled_from([1.0, 1.5, 2.0]))
@settings(max_examples=60)
def test_rows_belong_to_their_holders_as_a_naive_recomputation_says(
    played: tuple[list[Contribution], tuple[int, ...]], combination: str, step: float
) -> None:
    everybody, labels = played
    rule = Rule(name=PRIOR_ROWS, combination=RobustRule(name=combination), server_step=step)
    found = made(rule, everybody, labels)

    assert list(found) == sorted(set(labels))
    output = found[0]
    assert all(other is output for other in found.values()), "one model for all"
    assert numbers(output, "representation.w") == [naive(rule, everybody, "representation.w", at) for at in (0, 1)]
    held = [category for category in range(CLASSES) if any(entry.holds[category] for entry in everybody)]
    for name in ("decision.weight", "decision.bias"):
        for category in range(CLASSES):
            if category not in held and len(held) > 1:
                others = [numbers(output, name)[other] for other in held]
                assert numbers(output, name)[category] == naive_mean(others, [1] * len(held))
                continue
            holders = [entry for entry in everybody if entry.holds[category]]
            received = [numbers(dict(entry.received), name)[category] for entry in everybody]
            weights = [entry.weight for entry in everybody]
            unmoved = received[0] if len(set(received)) == 1 else naive_mean(received, weights)
            combined = naive(replace(rule, server_step=1), holders, name, category) if holders else unmoved
            assert numbers(output, name)[category] == naive_step(rule, received, weights, combined)


@given(rounds(), st.sampled_from(RULES), st.sampled_from([PAA, PRIOR_ROWS]), st.sampled_from([0.0, 0.2, 0.45]))
@settings(max_examples=80)
def test_every_rule_has_the_same_finite_result_each_time_whatever_the_chunks(
    played: tuple[list[Contribution], tuple[int, ...]], combination: str, name: str, hostile: float
) -> None:
    contributions, labels = played
    rule = Rule(name=name, combination=RobustRule(name=combination, hostile=hostile), server_step=2.0)

    def result() -> list[bytes]:
        return [serialize(output) for output in made(rule, contributions, labels).values()]

    first = result()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aggregation, "CHUNK_ELEMENTS", 1)
        assert result() == first


@given(rounds())
@settings(max_examples=30)
def test_the_plain_rule_is_the_mean_that_aggregation_defines(
    played: tuple[list[Contribution], tuple[int, ...]],
) -> None:
    contributions, labels = played

    for label, output in made(Rule(), contributions, labels).items():
        members = [entry for entry, own in zip(contributions, labels, strict=True) if own == label]
        plain = aggregation.mean([entry.sent for entry in members], [entry.weight for entry in members])
        assert serialize(output) == serialize(plain)


def contribution(value: float, received: float = 0.0, holds: Sequence[bool] = (True,) * CLASSES) -> Contribution:
    return Contribution(
        sent=model([value] * 2, [value] * CLASSES), received=model([received] * 2, [received] * CLASSES), holds=holds
    )


def test_a_row_without_holders_is_the_mean_of_the_others() -> None:
    clients = [contribution(3, 1, (True, False, True)), contribution(5, 1, (False, False, True))]

    (output,) = made(Rule(name=PRIOR_ROWS, server_step=2.0), clients, (0, 0)).values()

    assert numbers(output, "decision.weight") == [5.0, 6.0, 7.0]
    assert numbers(output, "representation.w") == [7.0, 7.0]


def test_rows_without_holders_stay_as_received_where_only_one_class_is_held() -> None:
    (output,) = made(Rule(name=PRIOR_ROWS), [contribution(3, 1, (False, True, False))], (0,)).values()

    assert numbers(output, "decision.weight") == [1.0, 3.0, 1.0]


@pytest.mark.parametrize("combination", ["krum", "multi-krum"])
def test_a_row_with_fewer_holders_than_krum_needs_is_their_median(combination: str) -> None:
    holders = [[True, client < 2, False] for client in range(7)]
    clients = [contribution(value, 0, held) for value, held in zip((1, 2, 3, 4, 5, 6, 100), holders, strict=True)]
    krum = Rule(name=PRIOR_ROWS, combination=RobustRule(name=combination))
    by_median = Rule(name=PRIOR_ROWS, combination=RobustRule(name="median"))

    (output,) = made(krum, clients, (0,) * 7).values()
    (expected,) = made(by_median, clients, (0,) * 7).values()

    assert numbers(output, "decision.weight")[1] == numbers(expected, "decision.weight")[1] == 1.5
    assert max(numbers(output, "decision.weight")) < 100


@pytest.mark.parametrize("name", [PAA, PRIOR_ROWS])
@pytest.mark.parametrize("combination", RULES)
def test_the_largest_numbers_there_are_make_a_finite_output(name: str, combination: str) -> None:
    clients = [contribution(HUGE, -HUGE), contribution(-HUGE, HUGE), contribution(HUGE, HUGE)]
    rule = Rule(name=name, combination=RobustRule(name=combination), server_step=10.0)

    for labels in ((0, 0, 0), (0, 1, 2)):
        for output in made(rule, clients, labels).values():
            serialize(output)


def test_a_variance_takes_no_step_beyond_the_combined_one() -> None:
    name = "representation.bn1.running_var"
    clients = [
        replace(entry, sent={**entry.sent, name: small}, received={**entry.received, name: large})
        for entry in [contribution(1)]
        for small, large in [(np.array([0.1], dtype=np.float32), np.array([1.0], dtype=np.float32))]
    ]

    for rule in (Rule(server_step=2.0), Rule(name=PRIOR_ROWS, server_step=2.0)):
        (output,) = made(rule, clients, (0,)).values()
        assert numbers(output, name) == [pytest.approx(0.1)]
        assert numbers(output, "representation.w") == [2.0, 2.0]


def test_counters_take_no_step() -> None:
    clients = [Contribution(sent=model([0, 0], [0] * 3, count), received=model([0, 0], [0] * 3, 0)) for count in (3, 4)]

    (output,) = made(Rule(server_step=2.0), clients, (0, 0)).values()

    assert output["representation.n"].tolist() == Fraction(7, 2).__floor__()


@pytest.mark.parametrize(
    ("rule", "needs"),
    [
        (Rule(), False),
        (Rule(combination=RobustRule(name="krum")), False),
        (Rule(combination=RobustRule(name="norm-clipping")), True),
        (Rule(server_step=1.5), True),
        (Rule(name=PRIOR_ROWS), True),
    ],
)
def test_what_clients_had_received_is_asked_for_only_where_it_counts(rule: Rule, needs: bool) -> None:
    assert rule.needs_received is needs
    if not needs:
        clients = [Contribution(sent=contribution(value).sent, received={}) for value in (1, 2, 3)]
        assert list(made(rule, clients, (0, 0, 1))) == [0, 1]


@pytest.mark.parametrize(("settings", "fault"), [({"name": "best"}, "no rule 'best'"), ({"server_step": 0}, "than 0")])
def test_a_wrong_rule_is_refused(settings: dict[str, object], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Rule(**settings)  # type: ignore[arg-type]  # what a job may say


# What one hostile client can do to a row, by who else holds its class. Rows are 1 among the honest.


def attacked(combination: str, honest_holders: int, garbage: float = 1000.0) -> float:
    """The row of class 0 among nine honest clients, so many of whom hold it, and a liar who says that it does."""
    honest = [contribution(1, 1, (client < honest_holders, True, True)) for client in range(9)]
    rule = Rule(name=PRIOR_ROWS, combination=RobustRule(name=combination))
    (output,) = made(rule, [*honest, contribution(garbage, 1)], (0,) * 10).values()
    assert combination == "mean" or numbers(output, "representation.w") == [1.0, 1.0]
    return numbers(output, "decision.weight")[0]


def test_a_sole_holder_owns_its_row_whatever_the_combination() -> None:
    for combination in RULES:
        assert attacked(combination, 0) == 1000.0


def test_a_liar_moves_a_mean_and_the_median_only_where_a_single_honest_client_holds_the_class() -> None:
    assert [attacked("mean", holders) for holders in (1, 2, 9)] == [500.5, pytest.approx(334), pytest.approx(100.9)]
    assert [attacked("median", holders) for holders in (1, 2, 9)] == [500.5, 1.0, 1.0]
