"""Methods by name: the built-in ones, and those that installed packages offer.

A package offers one by an entry point of the group `bflnode.methods` that names a subclass of `method.Method`:

    [project.entry-points."bflnode.methods"]
    mine = "my_package:MyMethod"
"""

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from importlib.metadata import entry_points
from typing import Any, get_type_hints

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

BUILT_IN: tuple[type[Method], ...] = (
    *(FedAvg, FedProx, FedProto, FedHkd),
    *(Paa, LabelClusters, RandomClusters, Ifca),
    *(FedPer, FedRep, FedRod, FedBn, Apfl, Ditto),
    *(PriorRows, LocalOnly, Centralised),
)


@cache
def methods() -> Mapping[str, type[Method]]:
    """All methods by name.

    Raises:
        MethodError: an entry point names something else, or a name that is taken.
    """
    found: dict[str, type[Method]] = {method.name: method for method in BUILT_IN}
    for entry in entry_points(group=ENTRY_POINTS):
        loaded = entry.load()
        if not (isinstance(loaded, type) and issubclass(loaded, Method)):
            raise MethodError(
                f"entry point {entry.name} ({entry.value}) is no subclass of bflnode.fl.methods.method.Method"
            )
        if entry.name in found:
            raise MethodError(f"entry point {entry.name} ({entry.value}): there is a method of that name already")
        found[entry.name] = loaded
    return found


def make_method(name: str, settings: Mapping[str, Any]) -> Method:
    """A method with settings, from a configuration.

    Raises:
        MethodError: no such method or setting, a value of another type, or out of range.
    """
    known = methods()
    if name not in known:
        raise MethodError(f"there is no method {name!r}: use one of {', '.join(sorted(known))}")
    method = known[name]
    types = get_type_hints(method)
    allowed = {field.name: types[field.name] for field in fields(method)}
    for key, value in settings.items():
        if key not in allowed:
            takes = f"it has {', '.join(allowed)}" if allowed else "it has none"
            raise MethodError(f"method {name} has no setting {key!r}: {takes}")
        if type(value) is not allowed[key] and not (allowed[key] is float and type(value) is int):
            raise MethodError(f"setting {key} of method {name} is {value!r}: give a {allowed[key].__name__}")
    return method(**settings)
