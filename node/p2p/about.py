"""What two nodes that can't talk can still tell each other: versions, and where their genesis files differ.

Pure functions over `messages.About`. A hello is only understood by a node of the same version and chain; this is how
both sides find out why it isn't.
"""

from dataclasses import fields

from bflnode.consensus.encoding import encode
from bflnode.consensus.genesis import Genesis
from bflnode.consensus.hashing import tagged_hash

from .messages import MAX_GENESIS_PARTS, About
from .streams import printable

DIGEST_BYTES = 8
"""Of a part of the genesis: enough to see a difference; what is agreed on is the chain id."""


def genesis_parts() -> tuple[str, ...]:
    """Names of the parts of a genesis that have digests, in order."""
    return tuple(field.name for field in fields(Genesis))[:MAX_GENESIS_PARTS]


def genesis_digests(genesis: Genesis) -> tuple[bytes, ...]:
    """A digest of each part of a genesis."""
    names = genesis_parts()
    values = genesis.to_value()
    assert isinstance(values, tuple), "a record is an array"
    return tuple(
        tagged_hash("genesis-part", name.encode() + encode(value))[:DIGEST_BYTES]
        for name, value in zip(names, values, strict=False)
    )


def differing_parts(ours: About, theirs: About) -> tuple[str, ...]:
    """Names of the parts in which two genesis files differ; none where they are equal or can't be compared."""
    if len(ours.genesis) != len(theirs.genesis):
        return ()
    pairs = zip(genesis_parts(), ours.genesis, theirs.genesis, strict=False)
    return tuple(name for name, own, other in pairs if own != other)


def version_fault(ours: About, theirs: About) -> str | None:
    """Why the two versions can't talk, and what to do; None where they can."""
    their_version = printable(theirs.version)
    if theirs.protocol < ours.oldest_protocol:
        return (
            f"it speaks protocol {theirs.protocol} (version {their_version}), this node needs at least "
            f"{ours.oldest_protocol}: update the other node"
        )
    if ours.protocol < theirs.oldest_protocol:
        return (
            f"it needs at least protocol {theirs.oldest_protocol} (version {their_version}), this node speaks "
            f"{ours.protocol} (version {ours.version}): update this node"
        )
    return None


def chain_fault(ours: About, theirs: About) -> str | None:
    """How the other node's chain differs, and what to do; None where it is the same."""
    if ours.chain_id == theirs.chain_id:
        return None
    parts = differing_parts(ours, theirs)
    where = f"the genesis files differ in {', '.join(parts)}" if parts else "the genesis files have different forms"
    return (
        f"it is on chain {theirs.chain_id.hex()[:16]}, this node on {ours.chain_id.hex()[:16]}; {where}: "
        "take config/genesis.json from whoever runs the network, in a new home"
    )
