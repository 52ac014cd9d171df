"""The light client: which later block to believe for somebody who trusts one block, and has nothing of the chain.

    genesis or trusted header --step--> header --step--> … --step--> the header that somebody wants to believe

A step from a trusted block to a later one holds if more than 2/3 of the later block's own validators signed it, and

    to the next height   its validators are those that the trusted header names as next       (sequential)
    further              more than 1/3 of the stake that the trusted header names as next signed it    (skipping)

So at least one honest validator of the trusted block stands behind the later one while Byzantine stake is below a
third (the rules of CometBFT's light client; Braithwaite et al. 2020). Sets of validators travel with the steps and are
checked against the hashes in headers. Validators whose stake is no longer at risk may sign a second history without
loss, so a block leads further only while it is younger than the time for which stake stays bound.

What belongs here: verifying a chain of steps, and choosing a short one. What is proven under the last header is
`proof_file`'s; where headers are found is `node`'s; what a forged chain proves against who signed it, `forgery`'s.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Protocol, Self

from .block import Commit, Header
from .genesis import MAX_GENESIS_BYTES, Genesis
from .ledger import verify_commit
from .quorum import ValidatorSet
from .records import Record
from .rejection import Reason, Rejection
from .tables import Validators
from .types import MAX_TIME_MS, AtMost, BlockId, ChainId, Hash, Milliseconds

MAX_STEPS = 128
"""Most steps of a chain: at 256 validators three seconds of checking signatures, and 2.3 MB of commits."""

MAX_SETS = 2 * MAX_STEPS
"""Most sets of validators: each step names two, its own and the next."""

CLOCK_DRIFT_MS = 60_000
"""How far a header's time may be ahead of the verifier's clock: what an ordinary machine's clock is wrong by."""


DEFAULT_TRUSTING_PERIOD_MS = 21 * 86_400_000
"""For how long a block is believed on a chain whose genesis isn't at hand: the `unbonding_ms` of most networks."""

ANY_AGE_MS = MAX_TIME_MS
"""The trusting period of whoever judges the validators otherwise, and believes them for ever."""


@dataclass(frozen=True, slots=True)
class SignedHeader(Record):
    """A header and the commit that made it final."""

    header: Header
    commit: Commit


@dataclass(frozen=True, slots=True)
class LightChain(Record):
    """The steps from something trusted to a header, and all that is needed to check them.

    `genesis` is the canonical genesis, empty if the chain doesn't start there; `anchor` the header of the block that it
    starts from instead. `validator_sets` are found by their hashes; that of the genesis need not be repeated.
    """

    genesis: Annotated[bytes, AtMost(MAX_GENESIS_BYTES)]
    anchor: Header | None
    steps: Annotated[tuple[SignedHeader, ...], AtMost(MAX_STEPS)]
    validator_sets: Annotated[tuple[Validators, ...], AtMost(MAX_SETS)]


@dataclass(frozen=True, slots=True)
class Trust:
    """The block that somebody believes in; at height 0 the genesis, whose id as a block is the chain's."""

    height: int
    block_id: BlockId


@dataclass(frozen=True, slots=True)
class Clock:
    """The verifier's time, and for how long it believes in a block.

    Attributes:
        now_ms: since the Unix epoch.
        trusting_period_ms: oldest trusted block; None is as long as stake stays bound, by the genesis of the chain
            where that is at hand.
    """

    now_ms: Milliseconds
    trusting_period_ms: Milliseconds | None = None


@dataclass(frozen=True, slots=True)
class TrustedBlock:
    """What a verifier knows of a block that it believes in."""

    chain_id: ChainId
    height: int
    id: BlockId
    time_ms: Milliseconds
    next_validators_hash: Hash

    @classmethod
    def of_header(cls, header: Header) -> Self:
        """Of any block but the genesis."""
        return cls(header.chain_id, header.height, header.id, header.time_ms, header.next_validators_hash)

    @classmethod
    def of_genesis(cls, genesis: Genesis) -> Self:
        """Of the genesis."""
        validators = set_of(Validators(genesis.validators))
        return cls(genesis.chain_id, 0, BlockId(genesis.chain_id), genesis.time_ms, validators.hash)


@dataclass(frozen=True, slots=True)
class VerifiedHeader:
    """A header to believe, and why.

    Attributes:
        header: the last one of the chain.
        trusted: what was believed to begin with.
        steps: how many it took; 0 if the header itself was trusted.
    """

    header: Header
    trusted: TrustedBlock
    steps: int


class HeaderSource(Protocol):
    """Where a proof is made: somebody who has the chain."""

    def header(self, height: int) -> Header:
        """The header at a height from 1 on."""

    def commit(self, height: int) -> Commit:
        """The commit for the block at a height."""

    def validator_set(self, set_hash: Hash) -> ValidatorSet | None:
        """The validators that a header names by this hash; None where a source that began later doesn't know them."""


def verify_light_chain(chain: LightChain, trust: Trust, clock: Clock) -> VerifiedHeader:
    """Say which header is to be believed because of a trusted block.

    The chain may pass through the trusted block: then only what follows it counts.

    Raises:
        Rejection: WRONG_HASH or WRONG_CHAIN if the chain doesn't start from the trusted block, EXPIRED if that is too
            old to lead further, NO_QUORUM, NOT_TRUSTED, BAD_SIGNATURE and others for the first step that doesn't hold,
            WRONG_TIME for a block of the future.
    """
    genesis = _genesis_of(chain)
    sets = sets_of(chain)
    trusted, header, rest = _start(chain, genesis, trust)
    age_ms, period_ms = clock.now_ms - trusted.time_ms, _trusting_period_ms(genesis, trusted, clock)
    if rest and age_ms > period_ms:
        raise Rejection(Reason.EXPIRED, trusted_height=trusted.height, age_ms=age_ms, trusting_period_ms=period_ms)
    believed = trusted
    for signed in rest:
        verify_step(believed, signed, sets)
        header = signed.header
        believed = TrustedBlock.of_header(header)
    if header is None:
        raise Rejection(Reason.MALFORMED, fault="no header follows the genesis")
    if header.time_ms > clock.now_ms + CLOCK_DRIFT_MS:
        raise Rejection(Reason.WRONG_TIME, height=header.height, time_ms=header.time_ms, now_ms=clock.now_ms)
    return VerifiedHeader(header, trusted, len(rest))


def _trusting_period_ms(genesis: Genesis | None, trusted: TrustedBlock, clock: Clock) -> Milliseconds:
    if clock.trusting_period_ms is not None:
        return clock.trusting_period_ms
    if genesis is not None and genesis.chain_id == trusted.chain_id:
        return genesis.parameters.unbonding_ms
    return DEFAULT_TRUSTING_PERIOD_MS


def verify_step(trusted: TrustedBlock, signed: SignedHeader, sets: Mapping[Hash, ValidatorSet]) -> None:
    """Check that whoever believes in a block must believe in a later one.

    Args:
        trusted: the block that is believed.
        signed: the later one.
        sets: validators by hash.

    Raises:
        Rejection: the first rule that doesn't hold.
    """
    header, commit = signed.header, signed.commit
    if header.chain_id != trusted.chain_id:
        raise Rejection(Reason.WRONG_CHAIN, chain=header.chain_id, expected=trusted.chain_id)
    if header.height <= trusted.height:
        raise Rejection(Reason.WRONG_HEIGHT, height=header.height, after=trusted.height)
    if header.time_ms <= trusted.time_ms:
        raise Rejection(Reason.WRONG_TIME, height=header.height, time_ms=header.time_ms, after_ms=trusted.time_ms)
    if (commit.height, commit.block_id) != (header.height, header.id):
        raise Rejection(Reason.WRONG_COMMIT, height=header.height, block=header.id, commit_block=commit.block_id)
    is_next = header.height == trusted.height + 1
    if is_next and header.parent != trusted.id:
        raise Rejection(Reason.WRONG_PARENT, height=header.height, parent=header.parent, expected=trusted.id)
    if is_next and header.validators_hash != trusted.next_validators_hash:
        expected = trusted.next_validators_hash
        raise Rejection(Reason.WRONG_HASH, height=header.height, validators=header.validators_hash, expected=expected)
    own = _find_set(sets, header.validators_hash)
    verify_commit(header.chain_id, own, commit)
    if not is_next:
        _require_overlap(_find_set(sets, trusted.next_validators_hash), own, trusted.height, commit)


def make_light_chain(source: HeaderSource, genesis: Genesis, start: int, target: int) -> LightChain:
    """Choose a short chain of steps from the block at `start` (0: the genesis) to the one at `target`.

    Halves the distance until a step holds, as CometBFT's light client does, then leaves out what a longer step spares.
    One step is enough while less than two thirds of the stake has changed hands.

    Raises:
        Rejection: LIMIT if more than `MAX_STEPS` are needed, PRUNED if the source doesn't know a set on the way.
    """
    assert 0 <= start <= target, f"no steps lead from block {start} to block {target}"
    trusted = TrustedBlock.of_header(source.header(start)) if start else TrustedBlock.of_genesis(genesis)
    path = _halved(source, trusted, target)
    steps = _without_detours(source, trusted, path)
    if len(steps) > MAX_STEPS:
        raise Rejection(Reason.LIMIT, steps=len(steps), limit=MAX_STEPS)
    believed, hashes = trusted, []
    for signed in steps:
        header = signed.header
        hashes += [believed.next_validators_hash, header.validators_hash]
        believed = TrustedBlock.of_header(header)
    known = () if start else (set_of(_validators(genesis)).hash,)
    needed = [set_hash for set_hash in dict.fromkeys(hashes) if set_hash not in known]
    return LightChain(
        genesis=b"" if start else genesis.to_bytes(),
        anchor=source.header(start) if start else None,
        steps=tuple(steps),
        validator_sets=tuple(Validators(_known_set(source, set_hash).validators) for set_hash in needed),
    )


def set_of(record: Validators) -> ValidatorSet:
    """The set of validators that a record lists.

    Raises:
        Rejection: MALFORMED unless accounts ascend.
    """
    accounts = [validator.account for validator in record.validators]
    if any(second <= first for first, second in pairwise(accounts)):
        raise Rejection(Reason.MALFORMED, fault="the accounts of a set of validators don't ascend")
    return ValidatorSet(record.validators)


def _validators(genesis: Genesis) -> Validators:
    return Validators(genesis.validators)


def _genesis_of(chain: LightChain) -> Genesis | None:
    return Genesis.from_bytes(chain.genesis, max_bytes=MAX_GENESIS_BYTES) if chain.genesis else None


def sets_of(chain: LightChain) -> dict[Hash, ValidatorSet]:
    """The sets of validators that a chain brings along, by their hashes.

    Raises:
        Rejection: MALFORMED for one that is none.
    """
    genesis = _genesis_of(chain)
    records = chain.validator_sets if genesis is None else (*chain.validator_sets, _validators(genesis))
    return {found.hash: found for found in map(set_of, records)}


def _start(
    chain: LightChain, genesis: Genesis | None, trust: Trust
) -> tuple[TrustedBlock, Header | None, tuple[SignedHeader, ...]]:
    """The trusted block, its header unless it is the genesis, and the steps that follow it."""
    if trust.height == 0:
        if genesis is None:
            raise Rejection(Reason.WRONG_CHAIN, fault="the proof doesn't start from a genesis", expected=trust.block_id)
        if BlockId(genesis.chain_id) != trust.block_id:
            raise Rejection(Reason.WRONG_CHAIN, chain=genesis.chain_id, expected=trust.block_id)
        return TrustedBlock.of_genesis(genesis), None, chain.steps
    headers = [signed.header for signed in chain.steps]
    if chain.anchor is not None and chain.anchor.height == trust.height:
        found, rest = chain.anchor, chain.steps
    else:
        position = next((index for index, header in enumerate(headers) if header.height == trust.height), None)
        if position is None:
            raise Rejection(Reason.WRONG_HEIGHT, fault="the proof doesn't lead through it", trusted_height=trust.height)
        found, rest = headers[position], chain.steps[position + 1 :]
    if found.id != trust.block_id:
        raise Rejection(Reason.WRONG_HASH, height=found.height, block=found.id, trusted=trust.block_id)
    return TrustedBlock.of_header(found), found, rest


def _find_set(sets: Mapping[Hash, ValidatorSet], set_hash: Hash) -> ValidatorSet:
    found = sets.get(set_hash)
    if found is None:
        raise Rejection(Reason.MALFORMED, fault="a set of validators is missing", set=set_hash)
    return found


def _require_overlap(trusted: ValidatorSet, own: ValidatorSet, trusted_height: int, commit: Commit) -> None:
    """More than a third of the trusted stake must have signed; that the signatures are good has been checked."""
    weight = _trusted_weight(trusted, own, commit)
    if not trusted.exceeds_third(weight):
        raise Rejection(
            Reason.NOT_TRUSTED,
            height=commit.height,
            trusted_height=trusted_height,
            stake=weight,
            total=trusted.total,
        )


def _trusted_weight(trusted: ValidatorSet, own: ValidatorSet, commit: Commit) -> int:
    return trusted.weight_of(own.validators[entry.index].account for entry in commit.signatures)


def _halved(source: HeaderSource, start: TrustedBlock, target: int) -> list[SignedHeader]:
    """Steps that hold, found by trying half the distance wherever one doesn't."""
    path: list[SignedHeader] = []
    believed = start
    heights = [target] if target > start.height else []
    while heights:
        signed = SignedHeader(source.header(heights[-1]), source.commit(heights[-1]))
        if _reaches(source, believed, signed):
            path.append(signed)
            believed = TrustedBlock.of_header(signed.header)
            heights.pop()
        else:
            heights.append((believed.height + heights[-1]) // 2)
    return path


def _without_detours(source: HeaderSource, start: TrustedBlock, path: list[SignedHeader]) -> list[SignedHeader]:
    """The path with the longest step that holds from each block on it."""
    kept: list[SignedHeader] = []
    believed = start
    while path:
        position = max(index for index, signed in enumerate(path) if index == 0 or _reaches(source, believed, signed))
        kept.append(path[position])
        believed = TrustedBlock.of_header(path[position].header)
        path = path[position + 1 :]
    return kept


def _reaches(source: HeaderSource, trusted: TrustedBlock, signed: SignedHeader) -> bool:
    """Whether a step between blocks of one's own chain holds: signatures were checked when they were stored."""
    header = signed.header
    if header.height == trusted.height + 1:
        return True
    validators = _known_set(source, trusted.next_validators_hash)
    own = _known_set(source, header.validators_hash)
    return validators.exceeds_third(_trusted_weight(validators, own, signed.commit))


def _known_set(source: HeaderSource, set_hash: Hash) -> ValidatorSet:
    found = source.validator_set(set_hash)
    if found is None:
        raise Rejection(Reason.PRUNED, validators=set_hash)
    return found
