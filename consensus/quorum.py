"""Validators and quorums: who votes, with how much stake, and how much is enough.

The two inequalities of the protocol are here and nowhere else, in integers: a quorum is more than two thirds
(`3*w > 2*W`), and more than one third (`3*w > W`) holds at least one honest validator while Byzantine stake is below
a third. Who leads is in `leaders`; counting votes in `machine`.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from .block import Validator
from .encoding import encode
from .hashing import tagged_hash
from .types import AccountId, Hash


def is_quorum(weight: int, total: int) -> bool:
    """Whether a weight is more than two thirds of the total: `3*w > 2*W`."""
    return 3 * weight > 2 * total


def exceeds_third(weight: int, total: int) -> bool:
    """Whether a weight is more than a third of the total: `3*w > W`."""
    return 3 * weight > total


@dataclass(frozen=True, slots=True)
class ValidatorSet:
    """The validators of a height or the committee of a learning round.

    Attributes:
        validators: each account once; kept in ascending order of key, whatever order they are given in.
        total: the stake of all of them.
        hash: what a header says of them.
    """

    validators: tuple[Validator, ...]
    total: int = field(init=False, compare=False)
    hash: Hash = field(init=False, compare=False)
    _positions: dict[AccountId, int] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.validators, key=lambda validator: validator.account))
        positions = {validator.account: index for index, validator in enumerate(ordered)}
        assert len(positions) == len(ordered), "an account is a validator once"
        payload = encode(tuple(validator.to_value() for validator in ordered))
        object.__setattr__(self, "validators", ordered)
        object.__setattr__(self, "total", sum(validator.stake for validator in ordered))
        object.__setattr__(self, "hash", tagged_hash("validators", payload))
        object.__setattr__(self, "_positions", positions)

    @property
    def accounts(self) -> tuple[AccountId, ...]:
        """The validators' accounts in ascending order of key."""
        return tuple(validator.account for validator in self.validators)

    def __len__(self) -> int:
        return len(self.validators)

    def __contains__(self, account: AccountId) -> bool:
        return account in self._positions

    def index_of(self, account: AccountId) -> int | None:
        """Position of a validator in the order of keys, as commits name it, or None for anybody else."""
        return self._positions.get(account)

    def stake_of(self, account: AccountId) -> int:
        """Stake of an account: 0 if it is no validator."""
        index = self._positions.get(account)
        return 0 if index is None else self.validators[index].stake

    def weight_of(self, accounts: Iterable[AccountId]) -> int:
        """Stake of several accounts together; each counts once, and those that are no validators count nothing."""
        return sum(self.stake_of(account) for account in dict.fromkeys(accounts))

    def owner_of(self, token: int) -> AccountId:
        """Whose stake a micro-token is, all of it numbered from 0 in the order of keys."""
        assert 0 <= token < self.total, "there is such a token"
        for validator in self.validators:
            token -= validator.stake
            if token < 0:
                return validator.account
        raise AssertionError("the stakes add up to the total")

    def is_quorum(self, weight: int) -> bool:
        """Whether a stake is more than two thirds of all stake."""
        return is_quorum(weight, self.total)

    def exceeds_third(self, weight: int) -> bool:
        """Whether a stake is more than a third of all stake."""
        return exceeds_third(weight, self.total)
