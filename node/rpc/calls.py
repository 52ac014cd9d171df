"""Questions by name: the methods that RPC answers and the command line asks, with parameters checked by signature.

What belongs here: names, and turning a JSON object of parameters into a call. What a method does is `inspection`'s;
what only a running node can do is in `methods`.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from .inspection import Inspector
from .proofs import commit, proof
from .refusals import ParameterError

INSPECTIONS: dict[str, Callable[..., Any]] = {
    "status": Inspector.status,
    "head": Inspector.head,
    "blockchain": Inspector.blocks,
    "block": Inspector.block,
    "tx": Inspector.transaction,
    "account": Inspector.account,
    "accounts": Inspector.accounts,
    "task": Inspector.task,
    "tasks": Inspector.tasks,
    "queue": Inspector.queue,
    "validators": Inspector.validators,
    "validator": Inspector.validator,
    "evidence": Inspector.evidence,
    "round": Inspector.round,
    "rounds": Inspector.rounds,
    "clusters": Inspector.clusters,
    "rewards": Inspector.rewards,
    "reward": Inspector.explain_reward,
    "models": Inspector.models,
    "model": Inspector.model,
    "journal": Inspector.journal,
    "commit": commit,
    "proof": proof,
}
"""Methods that a stopped home answers as well; CometBFT's names where it has one."""


def bind(function: Callable[..., Any], params: Mapping[str, Any], *, bound: int = 1) -> dict[str, Any]:
    """Check parameters given by name against a function's annotations: text, integers, booleans, None.

    Args:
        function: what will be called.
        params: from JSON; an integer is taken where text is wanted, since heights and rounds are numbers.
        bound: leading parameters of the function that are not the caller's (`self`).

    Raises:
        ParameterError: unknown, missing or of another type.
    """
    known = dict(list(_parameters(function).items())[bound:])
    values: dict[str, Any] = {}
    for name, value in params.items():
        if name not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ParameterError(f"there is no parameter {name[:40]!r}: {takes}")
        values[name] = _converted(name, known[name][0], value)
    missing = [name for name, (_, is_required) in known.items() if is_required and name not in values]
    if missing:
        raise ParameterError(f"parameter {missing[0]!r} is missing")
    return values


@cache
def _parameters(function: Callable[..., Any]) -> dict[str, tuple[tuple[type, ...], bool]]:
    """Allowed types of each parameter, and whether it is required."""
    hints = get_type_hints(function)
    found = {}
    for name, parameter in inspect.signature(function).parameters.items():
        hint = hints.get(name, object)
        kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
        found[name] = (kinds, parameter.default is inspect.Parameter.empty)
    return found


def _converted(name: str, kinds: tuple[type, ...], value: Any) -> Any:
    if type(value) is int and str in kinds and int not in kinds:
        value = str(value)
    if type(value) not in kinds:
        wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
        raise ParameterError(f"parameter {name!r} is of type {type(value).__name__}, not {wanted}")
    return value
