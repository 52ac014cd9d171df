"""All decoders of foreign bytes, by name."""

from functools import cache

from tests.fuzz.rule import Target
from tests.fuzz.targets_chain import chain_targets
from tests.fuzz.targets_files import file_targets
from tests.fuzz.targets_wire import wire_targets


@cache
def targets() -> dict[str, Target]:
    """By name: what peers send first, then what is read from files and sockets of this machine."""
    return wire_targets() | chain_targets() | file_targets()
