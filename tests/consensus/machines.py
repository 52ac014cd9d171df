"""A machine of agreement among four validators of equal stake, and what tests tell it.

Ours is validator 0. Validator r leads round r of height 1.
"""

from bflnode.consensus.agreement import (
    Effect,
    ProposalReceived,
    Schedule,
    SignVote,
    Step,
    TimeoutElapsed,
    VoteReceived,
)
from bflnode.consensus.block import (
    BLOCK_VERSION,
    NIL,
    Block,
    Header,
    ProposalMessage,
    Validator,
    Vote,
    VoteKind,
    genesis_commit,
    sign_proposal,
    sign_vote,
)
from bflnode.consensus.genesis import Parameters
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.machine import Machine
from bflnode.consensus.quorum import ValidatorSet
from bflnode.consensus.types import AccountId, BlockId, ChainId, Hash

CHAIN = ChainId(bytes(32))
KEYS = sorted((SecretKey(bytes([number]) * 32) for number in range(1, 5)), key=lambda key: key.account)
VALIDATORS = ValidatorSet(tuple(Validator(key.account, 10) for key in KEYS))
PARAMETERS = Parameters(
    block_interval_ms=0,
    heartbeat_ms=60_000,
    clock_tolerance_ms=1_000,
    max_step_ms=60_000,
    propose_timeout_ms=300,
    vote_timeout_ms=150,
    timeout_step_ms=100,
    admission_amount=5,
    copy_memory_rounds=5,
    minimum_stake=1,
    unbonding_ms=60_000,
    jail_ms=10_000,
    attendance_window=100,
    missed_to_jail=95,
)
HEIGHT = 1
ZERO = Hash(bytes(32))
PREVOTE, PRECOMMIT = VoteKind.PREVOTE, VoteKind.PRECOMMIT


def leader(round_: int) -> AccountId:
    return KEYS[round_ % 4].account


def machine_of(number: int | None = 0) -> Machine:
    account = None if number is None else KEYS[number].account
    return Machine(account, PARAMETERS, height=HEIGHT, validators=VALIDATORS, leader=leader)


def started(number: int | None = 0) -> Machine:
    machine = machine_of(number)
    assert machine.start() == ()
    return machine


def block_of(round_: int, time_ms: int = 1, height: int = HEIGHT) -> Block:
    header = Header(
        version=BLOCK_VERSION,
        chain_id=CHAIN,
        height=height,
        round=round_,
        time_ms=time_ms,
        parent=BlockId(CHAIN),
        proposer=leader(round_),
        transactions_root=ZERO,
        last_commit_hash=ZERO,
        validators_hash=ZERO,
        next_validators_hash=ZERO,
        state_root=ZERO,
        beacon=ZERO,
    )
    return Block(header, (), genesis_commit(CHAIN))


def vote_of(number: int, kind: VoteKind, round_: int, block_id: BlockId, height: int = HEIGHT) -> Vote:
    return sign_vote(KEYS[number], CHAIN, kind, height, round_, block_id)


def proposal_of(
    round_: int, block: Block, valid_round: int = -1, certificate: tuple[Vote, ...] = (), signer: int | None = None
) -> ProposalMessage:
    key = KEYS[round_ % 4 if signer is None else signer]
    proposal = sign_proposal(key, CHAIN, height=HEIGHT, round_=round_, valid_round=valid_round, block_id=block.id)
    return ProposalMessage(proposal, block, certificate)


def certificate_of(round_: int, block: Block, voters: tuple[int, ...] = (1, 2, 3)) -> tuple[Vote, ...]:
    return tuple(vote_of(number, PREVOTE, round_, block.id) for number in voters)


def propose(machine: Machine, message: ProposalMessage, *, is_valid: bool = True) -> tuple[Effect, ...]:
    return machine.step(ProposalReceived(message, is_valid))


def vote(
    machine: Machine, kind: VoteKind, round_: int, block_id: BlockId, voters: tuple[int, ...]
) -> tuple[Effect, ...]:
    """The effects of several votes together."""
    events = (VoteReceived(vote_of(number, kind, round_, block_id)) for number in voters)
    return tuple(effect for event in events for effect in machine.step(event))


def time_out(machine: Machine, step: Step) -> tuple[Effect, ...]:
    return machine.step(TimeoutElapsed(HEIGHT, machine.round, step))


def go_to_round(machine: Machine, round_: int) -> tuple[Effect, ...]:
    """Let two others be in a later round (line 55); votes from far ahead are kept only when they come again."""
    return vote(machine, PREVOTE, round_, NIL, (2, 3))


def timeout(round_: int, step: Step, duration_ms: int) -> Schedule:
    return Schedule(TimeoutElapsed(HEIGHT, round_, step), duration_ms)


def prevotes_of(effects: tuple[Effect, ...]) -> list[SignVote]:
    return [effect for effect in effects if isinstance(effect, SignVote) and effect.kind is PREVOTE]


def signed(kind: VoteKind, round_: int, block_id: BlockId) -> SignVote:
    return SignVote(kind, HEIGHT, round_, block_id)


def locked_machine() -> tuple[Machine, Block]:
    """Ours has locked, and precommitted, the block of round 0."""
    machine, block = started(), block_of(0)
    propose(machine, proposal_of(0, block))
    vote(machine, PREVOTE, 0, block.id, (0, 1, 2))
    assert machine.current_step is Step.PRECOMMIT
    return machine, block
