"""Methods by name: the built-in ones, and those that installed packages offer.

A package offers one by an entry point of the group `bflnode.methods` that names a subclass of `method.Method`:

    [project.entry-points."bflnode.methods"]
    mine = "my_package:MyMethod"
"""

import sys
from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import entry_points
from typing import Any, get_type_hints

from bflnode.fl.samples import printable

from .controls import Centralised, LocalOnly
from .fedproto import FedHkd, FedProto
from .fedprox import FedProx
from .fedrod import FedRod
from .ifca import Ifca
from .method import FedAvg, Method, MethodError
from .mixtures import Apfl, Ditto
from .paa import LabelClusters, Paa, RandomClusters
from .personal_layers import FedBn, FedPer, FedRep
from .prior_rows import PriorRows

ENTRY_POINTS = "bflnode.methods"

KINDS: Mapping[type, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text in quotes"}
"""Types of settings as people call them."""

BUILT_IN: tuple[type[Method], ...] = (
    *(FedAvg, FedProx, FedProto, FedHkd),
    *(Paa, LabelClusters, RandomClusters, Ifca),
    *(FedPer, FedRep, FedRod, FedBn, Apfl, Ditto),
    *(PriorRows, LocalOnly, Centralised),
)


def methods() -> Mapping[str, type[Method]]:
    """The built-in methods by name."""
    return {method.name: method for method in BUILT_IN}


def _chosen(name: str) -> type[Method]:
    """The method of this name. Only its own package is loaded: one that is broken stops no other method."""
    offered = entry_points(group=ENTRY_POINTS)
    known = methods()
    if name not in (*known, *offered.names):
        raise MethodError(f"there is no method {name!r}: use one of {', '.join(sorted({*known, *offered.names}))}")
    entries = tuple(offered.select(name=name))
    if not entries:
        return known[name]
    place = f"entry point {name} ({entries[0].value})"
    if name in known or len(entries) > 1:
        raise MethodError(f"{place}: there is a method of that name already, call it otherwise")
    try:
        loaded = entries[0].load()
    except Exception as error:  # whatever another package does when it is imported
        raise MethodError(
            f"{place} can't be loaded ({type(error).__name__}: {error}): correct its package, or uninstall it"
        ) from error
    if not (isinstance(loaded, type) and issubclass(loaded, Method)):
        raise MethodError(f"{place} is no subclass of bflnode.fl.methods.method.Method")
    return loaded


def failure(name: str, method: type[Method], error: Exception) -> str:
    """What a user is told when a method of another package raised something that none of ours would."""
    return (
        f"method {name} of {method.__module__} failed ({type(error).__name__}: {error}): correct its package; "
        "BFLNODE_DEBUG=1 shows where"
    )


def make_method(name: str, settings: Mapping[str, Any]) -> Method:
    """A method with settings, from a configuration.

    Raises:
        MethodError: no such method or setting, a value of another type, out of range or not finite, or an entry point
            that can't be used.
    """
    method = _chosen(name)
    types = get_type_hints(method)
    allowed = {field.name: types[field.name] for field in fields(method)}
    for key, value in settings.items():
        if key not in allowed:
            raise MethodError(f"method {name} has no setting {printable(repr(key))}: it has {', '.join(allowed)}")
        if type(value) is not allowed[key] and not (allowed[key] is float and type(value) is int):
            raise MethodError(
                f"setting {key} of method {name} is {printable(repr(value))}: "
                f"give {KINDS.get(allowed[key], allowed[key])}"
            )
        if allowed[key] is float and not abs(value) <= sys.float_info.max:
            raise MethodError(f"setting {key} of method {name} is {printable(str(value))}: give a finite number")
    try:
        made = method(**settings)
    except MethodError:
        raise
    except Exception as error:  # whatever another package does
        if method in BUILT_IN:
            raise
        raise MethodError(failure(name, method, error)) from error
    if not 0 <= made.interpolation <= 1:
        raise MethodError(f"interpolation is {made.interpolation}: give 0 to 1")
    return made
