"""The light client on chains whose validators change: what it believes, and what it can't be made to believe."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bflnode.consensus.block import (
    Commit,
    CommitSignature,
    Header,
    Validator,
    VoteKind,
    sign_vote,
)
from bflnode.consensus.light import (
    ANY_AGE_MS,
    CLOCK_DRIFT_MS,
    DEFAULT_TRUSTING_PERIOD_MS,
    MAX_STEPS,
    Clock,
    LightChain,
    SignedHeader,
    Trust,
    VerifiedHeader,
    make_light_chain,
    verify_light_chain,
)
from bflnode.consensus.quorum import ValidatorSet
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.tables import Validators
from bflnode.consensus.types import AccountId, BlockId, ChainId, Hash, Signature
from tests.consensus.setups import START_MS, Setup, make_keys

KEYS = make_keys(MAX_STEPS + 1, "validator")
KEY_OF = {key.account: key for key in KEYS}
STAKE = 10
SPACING_MS = 1_000
OLD, NEW = (0, 1, 2, 3), (4, 5, 6, 7)


def digest(*parts: object) -> Hash:
    return Hash(sha256(repr(parts).encode()).digest())


def validator_set(actors: Iterable[int]) -> ValidatorSet:
    return ValidatorSet(tuple(Validator(KEYS[actor].account, STAKE) for actor in actors))


class SignedChain:
    """Headers of the heights from 1 on, each signed by the validators given for it; `absent` of them didn't sign."""

    def __init__(self, sets: Sequence[Sequence[int]], absent: Iterable[int] = (), name: str = "one") -> None:
        self.sets = [validator_set(actors) for actors in sets]
        genesis = Setup().genesis(make_keys(4))
        validators = self.sets[0].validators
        self.genesis = replace(genesis, name=name, validators=validators, queue=(), tasks=())
        self.absent = {KEYS[actor].account for actor in absent}
        self.headers: list[Header] = []
        for height in range(1, len(sets) + 1):
            self.headers.append(self.make_header(height))

    def make_header(self, height: int) -> Header:
        parent = self.headers[-1].id if self.headers else BlockId(self.genesis.chain_id)
        own = self.sets[height - 1]
        following = self.sets[min(height, len(self.sets) - 1)]
        return Header(
            version=1,
            chain_id=self.genesis.chain_id,
            height=height,
            round=0,
            time_ms=START_MS + height * SPACING_MS,
            parent=parent,
            proposer=own.validators[0].account,
            transactions_root=digest("transactions", height),
            last_commit_hash=digest("last commit", height),
            validators_hash=own.hash,
            next_validators_hash=following.hash,
            state_root=digest("state", height),
            beacon=digest("beacon"),
        )

    @property
    def height(self) -> int:
        return len(self.headers)

    @property
    def trust(self) -> Trust:
        return Trust(0, BlockId(self.genesis.chain_id))

    def at(self, height: int) -> Trust:
        return Trust(height, self.header(height).id)

    def header(self, height: int) -> Header:
        return self.headers[height - 1]

    def commit(self, height: int) -> Commit:
        return signed(self.header(height), self.sets[height - 1], self.absent).commit

    def validator_set(self, set_hash: Hash) -> ValidatorSet:
        return next(found for found in self.sets if found.hash == set_hash)

    def chain(self, start: int = 0, target: int | None = None) -> LightChain:
        return make_light_chain(self, self.genesis, start, self.height if target is None else target)


def signed(header: Header, own: ValidatorSet, absent: Iterable[AccountId] = ()) -> SignedHeader:
    """A header with the signatures of a set of validators."""
    entries = []
    for index, validator in enumerate(own.validators):
        if validator.account not in absent:
            key = KEY_OF[validator.account]
            vote = sign_vote(key, ChainId(header.chain_id), VoteKind.PRECOMMIT, header.height, 0, header.id)
            entries.append(CommitSignature(index, vote.signature))
    return SignedHeader(header, Commit(header.height, 0, header.id, tuple(entries)))


def clock(chain: SignedChain, after_ms: int = 0, trusting_period_ms: int | None = ANY_AGE_MS) -> Clock:
    return Clock(chain.headers[-1].time_ms + after_ms, trusting_period_ms)


def verified(chain: SignedChain, proof: LightChain, trust: Trust | None = None) -> VerifiedHeader:
    carried = LightChain.from_bytes(proof.to_bytes(), max_bytes=2**24)
    return verify_light_chain(carried, trust or chain.trust, clock(chain))


def refusal(chain: SignedChain, proof: LightChain, trust: Trust | None = None) -> Reason:
    with pytest.raises(Rejection) as refused:
        verified(chain, proof, trust)
    return refused.value.reason


def heights(proof: LightChain) -> list[int]:
    return [step.header.height for step in proof.steps]


def with_sets(proof: LightChain, *sets: ValidatorSet) -> LightChain:
    return replace(proof, validator_sets=(*proof.validator_sets, *(Validators(found.validators) for found in sets)))


STEADY = SignedChain([OLD] * 40)
REPLACED = SignedChain([OLD] * 5 + [NEW] * 5)


def test_one_step_leads_to_any_height_while_validators_stay() -> None:
    proof = STEADY.chain()

    assert heights(proof) == [40]
    assert proof.validator_sets == ()
    found = verified(STEADY, proof)
    assert (found.header, found.trusted.height, found.steps) == (STEADY.header(40), 0, 1)


def test_next_height_is_reached_without_any_validator_in_common() -> None:
    proof = REPLACED.chain(5, 6)

    assert heights(proof) == [6]
    assert verified(REPLACED, proof, REPLACED.at(5)).header == REPLACED.header(6)


def test_replaced_validators_are_reached_through_the_block_that_names_them() -> None:
    proof = REPLACED.chain()

    assert heights(proof) == [5, 10]
    assert verified(REPLACED, proof).header == REPLACED.header(10)


def test_a_third_of_the_trusted_stake_is_not_enough() -> None:
    chain = SignedChain([(0, 1, 2)] * 3 + [(2, 3, 4)] * 3)
    step = signed(chain.header(6), chain.sets[5])
    direct = with_sets(replace(chain.chain(), steps=(step,)), chain.sets[5])

    assert refusal(chain, direct) is Reason.NOT_TRUSTED


def test_more_than_a_third_of_the_trusted_stake_is_enough() -> None:
    chain = SignedChain([(0, 1, 2)] * 3 + [(1, 2, 3)] * 3)

    assert heights(chain.chain()) == [6]
    assert verified(chain, chain.chain()).header == chain.header(6)


def test_trusted_stake_counts_only_for_who_signed() -> None:
    chain = SignedChain([(0, 1, 2)] * 3 + [(1, 2, 3, 4, 5, 6, 7)] * 3, absent=(1,))

    assert heights(chain.chain()) == [3, 6]
    direct = replace(chain.chain(), steps=chain.chain().steps[1:])
    assert refusal(chain, direct) is Reason.NOT_TRUSTED


def test_two_thirds_of_the_own_stake_are_not_enough() -> None:
    chain = SignedChain([(0, 1, 2)] * 4, absent=(2,))

    assert refusal(chain, chain.chain()) is Reason.NO_QUORUM


def test_more_than_two_thirds_of_the_own_stake_are_enough() -> None:
    chain = SignedChain([OLD] * 4, absent=(2,))

    assert verified(chain, chain.chain()).header == chain.header(4)


def test_forged_validators_are_not_believed() -> None:
    """Somebody without stake makes a header that its own validators sign, for a height further on and for the next."""
    forger = validator_set(NEW)
    for height, reason in ((20, Reason.NOT_TRUSTED), (1, Reason.WRONG_HASH)):
        header = replace(STEADY.header(height), validators_hash=forger.hash, next_validators_hash=forger.hash)
        forged = with_sets(replace(STEADY.chain(), steps=(signed(header, forger),)), forger)
        assert refusal(STEADY, forged) is reason


def test_forged_set_of_validators_under_the_true_hash_is_not_found() -> None:
    proof = REPLACED.chain()
    forged = replace(proof, validator_sets=(Validators(validator_set((8, 9, 10)).validators),))

    assert refusal(REPLACED, forged) is Reason.MALFORMED


def test_set_of_validators_that_lists_one_twice_is_malformed() -> None:
    twice = Validators(STEADY.sets[0].validators[:1] * 2)

    assert refusal(STEADY, replace(STEADY.chain(), validator_sets=(twice,))) is Reason.MALFORMED


def test_genesis_that_lists_a_validator_twice_is_malformed() -> None:
    genesis = replace(STEADY.genesis, validators=STEADY.genesis.validators[:1] * 2)
    forged = replace(STEADY.chain(), genesis=genesis.to_bytes())

    assert refusal(STEADY, forged, Trust(0, BlockId(genesis.chain_id))) is Reason.MALFORMED


def test_forged_signature_is_rejected() -> None:
    step = STEADY.chain().steps[0]
    entries = (replace(step.commit.signatures[0], signature=Signature(bytes(64))), *step.commit.signatures[1:])
    forged = replace(STEADY.chain(), steps=(replace(step, commit=replace(step.commit, signatures=entries)),))

    assert refusal(STEADY, forged) is Reason.BAD_SIGNATURE


def test_signature_that_counts_twice_is_rejected() -> None:
    step = STEADY.chain().steps[0]
    entries = step.commit.signatures[:1] * 3
    forged = replace(STEADY.chain(), steps=(replace(step, commit=replace(step.commit, signatures=entries)),))

    assert refusal(STEADY, forged) is Reason.WRONG_COMMIT


def test_prevotes_are_no_commit() -> None:
    header, own = STEADY.header(40), STEADY.sets[39]
    votes = [
        sign_vote(KEY_OF[validator.account], STEADY.genesis.chain_id, VoteKind.PREVOTE, 40, 0, header.id)
        for validator in own.validators
    ]
    entries = tuple(CommitSignature(index, vote.signature) for index, vote in enumerate(votes))
    forged = replace(STEADY.chain(), steps=(SignedHeader(header, Commit(40, 0, header.id, entries)),))

    assert refusal(STEADY, forged) is Reason.BAD_SIGNATURE


def test_commit_of_another_block_is_rejected() -> None:
    step = replace(STEADY.chain().steps[0], commit=STEADY.commit(39))

    assert refusal(STEADY, replace(STEADY.chain(), steps=(step,))) is Reason.WRONG_COMMIT


def test_changed_header_is_rejected() -> None:
    step = STEADY.chain().steps[0]
    forged = replace(step, header=replace(step.header, state_root=digest("more money")))

    assert refusal(STEADY, replace(STEADY.chain(), steps=(forged,))) is Reason.WRONG_COMMIT


def test_reordered_headers_are_rejected() -> None:
    steps = tuple(signed(STEADY.header(height), STEADY.sets[0]) for height in (30, 20))
    assert refusal(STEADY, replace(STEADY.chain(), steps=steps)) is Reason.WRONG_HEIGHT


def test_time_that_does_not_grow_is_rejected() -> None:
    late = signed(replace(STEADY.header(20), time_ms=STEADY.header(40).time_ms), STEADY.sets[0])

    assert refusal(STEADY, replace(STEADY.chain(), steps=(late, *STEADY.chain().steps))) is Reason.WRONG_TIME


def test_next_header_with_another_parent_is_rejected() -> None:
    step = signed(replace(STEADY.header(6), parent=BlockId(digest("elsewhere"))), STEADY.sets[0])

    forged = replace(STEADY.chain(5, 6), steps=(step,))
    assert refusal(STEADY, forged, STEADY.at(5)) is Reason.WRONG_PARENT


def test_header_of_another_chain_is_rejected() -> None:
    other = SignedChain([OLD] * 40, name="two")

    assert refusal(STEADY, replace(STEADY.chain(), steps=other.chain().steps)) is Reason.WRONG_CHAIN
    assert refusal(STEADY, other.chain()) is Reason.WRONG_CHAIN


def test_missing_step_is_noticed() -> None:
    proof = REPLACED.chain()

    assert refusal(REPLACED, replace(proof, steps=proof.steps[1:])) is Reason.NOT_TRUSTED


def test_proof_without_steps_after_the_genesis_proves_nothing() -> None:
    assert refusal(STEADY, replace(STEADY.chain(), steps=())) is Reason.MALFORMED


def test_chain_may_start_from_any_block() -> None:
    proof = STEADY.chain(17)

    assert (proof.genesis, proof.anchor) == (b"", STEADY.header(17))
    found = verified(STEADY, proof, STEADY.at(17))
    assert (found.header.height, found.trusted.height, found.steps) == (40, 17, 1)


def test_trusted_block_itself_needs_no_signatures() -> None:
    assert verified(STEADY, STEADY.chain(40), STEADY.at(40)).steps == 0
    assert verified(STEADY, STEADY.chain(), STEADY.at(40)).steps == 0


def test_only_what_follows_the_trusted_block_counts() -> None:
    proof = REPLACED.chain()
    found = verified(REPLACED, proof, REPLACED.at(5))

    assert (found.trusted.height, found.steps) == (5, 1)


def test_block_that_the_chain_does_not_lead_through_is_no_start() -> None:
    assert refusal(STEADY, STEADY.chain(), STEADY.at(39)) is Reason.WRONG_HEIGHT


def test_another_block_of_the_trusted_height_is_rejected() -> None:
    forged = Trust(17, BlockId(digest("another")))

    assert refusal(STEADY, STEADY.chain(17), forged) is Reason.WRONG_HASH


def test_chain_from_a_block_does_not_start_from_the_genesis() -> None:
    assert refusal(STEADY, STEADY.chain(17)) is Reason.WRONG_CHAIN


@pytest.mark.parametrize(("age_ms", "is_refused"), [(100_000, False), (100_001, True)])
def test_trusted_block_older_than_the_trusting_period_is_refused(age_ms: int, is_refused: bool) -> None:
    now = Clock(STEADY.header(17).time_ms + age_ms, 100_000)
    if not is_refused:
        assert verify_light_chain(STEADY.chain(17), STEADY.at(17), now).header.height == 40
        return
    with pytest.raises(Rejection) as refused:
        verify_light_chain(STEADY.chain(17), STEADY.at(17), now)
    assert refused.value.reason is Reason.EXPIRED


def test_by_default_a_block_is_believed_for_as_long_as_stake_stays_bound() -> None:
    """By the genesis where the chain has it, also behind a block that is trusted; else by what is usual."""
    unbonding_ms = STEADY.genesis.parameters.unbonding_ms
    assert unbonding_ms < DEFAULT_TRUSTING_PERIOD_MS
    for proof, trust, trusted_ms, period_ms in (
        (STEADY.chain(), STEADY.trust, STEADY.genesis.time_ms, unbonding_ms),
        (STEADY.chain(17), STEADY.at(17), STEADY.header(17).time_ms, DEFAULT_TRUSTING_PERIOD_MS),
    ):
        assert verify_light_chain(proof, trust, Clock(trusted_ms + period_ms)).header.height == 40
        with pytest.raises(Rejection) as refused:
            verify_light_chain(proof, trust, Clock(trusted_ms + period_ms + 1))
        assert refused.value.reason is Reason.EXPIRED
    through = replace(STEADY.chain(17), genesis=STEADY.genesis.to_bytes())
    with pytest.raises(Rejection) as refused:
        verify_light_chain(through, STEADY.at(17), Clock(STEADY.header(17).time_ms + unbonding_ms + 1))
    assert refused.value.reason is Reason.EXPIRED


def test_a_genesis_of_another_chain_does_not_lengthen_the_trust() -> None:
    patient = replace(STEADY.genesis, parameters=replace(STEADY.genesis.parameters, unbonding_ms=365 * 86_400_000))
    proof = replace(STEADY.chain(17), genesis=patient.to_bytes())
    with pytest.raises(Rejection) as refused:
        verify_light_chain(proof, STEADY.at(17), Clock(STEADY.header(17).time_ms + DEFAULT_TRUSTING_PERIOD_MS + 1))
    assert refused.value.reason is Reason.EXPIRED


def test_a_trusted_block_of_any_age_leads_to_itself() -> None:
    now = Clock(STEADY.header(17).time_ms + 2 * DEFAULT_TRUSTING_PERIOD_MS)
    assert verify_light_chain(STEADY.chain(17, 17), STEADY.at(17), now).steps == 0


@pytest.mark.parametrize(("ahead_ms", "is_refused"), [(CLOCK_DRIFT_MS, False), (CLOCK_DRIFT_MS + 1, True)])
def test_block_of_the_future_is_refused(ahead_ms: int, is_refused: bool) -> None:
    now = clock(STEADY, -ahead_ms)
    if not is_refused:
        assert verify_light_chain(STEADY.chain(), STEADY.trust, now).header.height == 40
        return
    with pytest.raises(Rejection) as refused:
        verify_light_chain(STEADY.chain(), STEADY.trust, now)
    assert refused.value.reason is Reason.WRONG_TIME


def test_chain_of_too_many_steps_is_not_made() -> None:
    """All stake changes hands in every block: each height needs its own step."""
    chain = SignedChain([(height,) for height in range(MAX_STEPS + 1)])

    assert len(chain.chain(0, MAX_STEPS).steps) == MAX_STEPS
    assert verified(chain, chain.chain(0, MAX_STEPS)).header.height == MAX_STEPS
    with pytest.raises(Rejection) as refused:
        chain.chain()
    assert refused.value.reason is Reason.LIMIT


@settings(max_examples=40, deadline=None)
@given(
    sets=st.lists(st.sets(st.integers(0, 5), min_size=1, max_size=4), min_size=1, max_size=16),
    data=st.data(),
)
def test_chain_through_any_history_of_validators_is_believed(sets: list[set[int]], data: st.DataObject) -> None:
    chain = SignedChain([sorted(actors) for actors in sets])
    target = data.draw(st.integers(1, chain.height))
    start = data.draw(st.integers(0, target))

    found = verified(chain, chain.chain(start, target), chain.at(start) if start else chain.trust)

    assert (found.header, found.trusted.height) == (chain.header(target), start)


@settings(max_examples=40, deadline=None)
@given(
    sets=st.lists(st.sets(st.integers(0, 5), min_size=1, max_size=4), min_size=3, max_size=10),
    traitors=st.sets(st.integers(0, 5), max_size=5),
    data=st.data(),
)
def test_forged_header_is_believed_only_with_a_third_of_the_stake(
    sets: list[set[int]], traitors: set[int], data: st.DataObject
) -> None:
    """Traitors sign a header of their own for a later height than the next, with themselves as its validators."""
    chain = SignedChain([sorted(actors) for actors in sets])
    start = data.draw(st.integers(0, chain.height - 2))
    trusted = chain.sets[start]
    forger = validator_set(sorted(traitors) or [11])
    forged_header = replace(chain.header(chain.height), validators_hash=forger.hash, state_root=digest("forged"))
    base = chain.chain(start, chain.height)
    forged = with_sets(replace(base, steps=(signed(forged_header, forger),)), forger, trusted)
    trust = chain.at(start) if start else chain.trust

    share = trusted.weight_of(validator.account for validator in forger.validators)
    if 3 * share > trusted.total:
        assert verified(chain, forged, trust).header == forged_header
    else:
        assert refusal(chain, forged, trust) is Reason.NOT_TRUSTED
