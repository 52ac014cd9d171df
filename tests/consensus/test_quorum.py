"""Stake and the two inequalities: `3*w > 2*W`, `3*w > W`."""

import pytest

from bflnode.consensus.block import Validator
from bflnode.consensus.quorum import ValidatorSet, exceeds_third, is_quorum
from bflnode.consensus.types import AccountId

A, B, C, STRANGER = (AccountId(bytes([number]) * 32) for number in (1, 2, 3, 4))


@pytest.mark.parametrize(
    ("weight", "total", "expected"), [(2, 3, False), (3, 3, True), (66, 99, False), (67, 99, True)]
)
def test_quorum_is_more_than_two_thirds(weight: int, total: int, expected: bool) -> None:
    assert is_quorum(weight, total) is expected


@pytest.mark.parametrize(
    ("weight", "total", "expected"), [(1, 3, False), (2, 3, True), (33, 99, False), (34, 99, True)]
)
def test_third_is_exceeded_by_more_than_a_third(weight: int, total: int, expected: bool) -> None:
    assert exceeds_third(weight, total) is expected


def test_nothing_is_a_quorum_of_nothing() -> None:
    assert not is_quorum(0, 0)
    assert not exceeds_third(0, 0)


def test_set_is_ordered_by_key_whatever_order_it_is_given_in() -> None:
    members = (Validator(B, 2), Validator(A, 1), Validator(C, 4))
    ordered = ValidatorSet(members)
    assert ordered.accounts == (A, B, C)
    assert ordered == ValidatorSet(members[::-1])
    assert ordered.hash == ValidatorSet(members[::-1]).hash


def test_set_tells_positions_and_stakes() -> None:
    members = ValidatorSet((Validator(A, 1), Validator(B, 2), Validator(C, 4)))
    assert (members.total, len(members)) == (7, 3)
    assert [members.index_of(account) for account in (A, B, C, STRANGER)] == [0, 1, 2, None]
    assert [members.stake_of(account) for account in (A, B, C, STRANGER)] == [1, 2, 4, 0]
    assert (A in members, STRANGER in members) == (True, False)


def test_weight_counts_each_account_once_and_strangers_nothing() -> None:
    members = ValidatorSet((Validator(A, 1), Validator(B, 2), Validator(C, 4)))
    assert members.weight_of([A, C, A, STRANGER]) == 5
    assert members.is_quorum(5)
    assert not members.is_quorum(4)
    assert members.exceeds_third(3)
    assert not members.exceeds_third(2)


def test_hash_changes_with_every_stake_and_member() -> None:
    sets = [
        ValidatorSet((Validator(A, 1), Validator(B, 2))),
        ValidatorSet((Validator(A, 2), Validator(B, 2))),
        ValidatorSet((Validator(A, 1), Validator(C, 2))),
        ValidatorSet((Validator(A, 1),)),
    ]
    assert len({members.hash for members in sets}) == len(sets)


def test_account_twice_is_our_own_fault() -> None:
    with pytest.raises(AssertionError, match="once"):
        ValidatorSet((Validator(A, 1), Validator(A, 2)))
