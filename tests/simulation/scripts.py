"""Directed schedules: attacks that need exact timing, which chance hardly ever finds.

Each script plays against the product as it is, or with a mutation, and raises `AssertionError` if a rule is broken.
Four validators of equal stake; where one is a puppet, the script itself signs for it and chooses who gets what.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from random import Random
from typing import TypeAlias

from bflnode.consensus.block import NIL, Block, ProposalMessage, Vote, VoteKind, sign_proposal, sign_vote
from bflnode.consensus.transaction import Transfer, sign_transaction
from bflnode.consensus.types import BlockId, Signature

from .byzantine import LIES, Traitor, Vice
from .disk import simulated_system
from .network import Message, Pending, Weather
from .simulated_chain import Decided
from .simulated_node import WAL
from .world import Fault, Setting, World, validator_keys

KEYS = validator_keys(4)
STILL = Weather(loss=0, duplication=0, longest_delay_ms=10, straggler_delay_ms=10)
PUPPET = 3

Mutation: TypeAlias = Callable[[], AbstractContextManager[object]]
Script: TypeAlias = Callable[[Mutation], None]


def four(**changes: object) -> Setting:
    """Four honest validators in calm weather, and what is changed."""
    return Setting(**{"keys": KEYS, "stakes": (10,) * 4, "weather": STILL, **changes})


@contextmanager
def played(setting: Setting, mutation: Mutation = nullcontext) -> Iterator[World]:
    """A world to play in; in the end it is judged without the mutation."""
    with simulated_system() as system:
        with mutation():
            world = World(setting, system=system, random=Random(1))
            yield world
        world.oracle.judge()


class StageError(Exception):
    """A script could not set its stage: what it wants to show it has not shown."""


def _require(is_set: bool) -> None:
    if not is_set:
        raise StageError


def transact(world: World, number: int, *, nonce: int = 0) -> None:
    """A client's transfer, handed to one node only: blocks of nodes that don't hear each other differ."""
    key = KEYS[number % 4]
    transfer = sign_transaction(key, world.oracle.chain_id, Transfer(KEYS[0].account, number + 1), nonce=nonce, fee=1)
    world.submit(number, transfer)


class Filter:
    """Loses what it is told to, and remembers all votes that it sees."""

    def __init__(self, loses: Callable[[int, int, Message], bool]) -> None:
        self._loses = loses
        self.votes: dict[tuple[VoteKind, int, BlockId, bytes], Vote] = {}

    def loses(self, sender: int, receiver: int, message: Message) -> bool:
        if isinstance(message, Vote):
            self.votes[message.kind, message.round, message.block_id, message.validator] = message
        return self._loses(sender, receiver, message)

    def prevotes(self, round_: int, block_id: BlockId) -> tuple[Vote, ...]:
        chosen = (vote for key, vote in sorted(self.votes.items()) if key[:3] == (VoteKind.PREVOTE, round_, block_id))
        return tuple(chosen)


class Puppet:
    """A validator that the script signs for, at height 1."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._key = KEYS[PUPPET]
        self._chain_id = world.oracle.chain_id

    def vote(self, kind: VoteKind, round_: int, block_id: BlockId, *receivers: int) -> Vote:
        vote = sign_vote(self._key, self._chain_id, kind, 1, round_, block_id)
        self.give(vote, *receivers)
        return vote

    def propose(
        self, round_: int, block: Block, *receivers: int, valid_round: int = -1, certificate: tuple[Vote, ...] = ()
    ) -> None:
        proposal = sign_proposal(
            self._key, self._chain_id, height=1, round_=round_, valid_round=valid_round, block_id=block.id
        )
        self.give(ProposalMessage(proposal, block, certificate), *receivers)

    def block(self, round_: int) -> Block:
        """A valid block of its own, another one at each time."""
        witness = self._world.nodes[1]
        return witness.chain.build(round_, self._key.account, witness.local_ms, ())

    def give(self, message: Message, *receivers: int) -> None:
        self._world.oracle.observes(message)
        for number in receivers:
            self._world.nodes[number].receive(PUPPET, message)

    def support(self, round_: int, block: Block, *receivers: int) -> None:
        for kind in VoteKind:
            self.vote(kind, round_, block.id, *receivers)


def _hides_decision(round_: int) -> Callable[[int, int, Message], bool]:
    """Of the precommits of a round node 0 hears all and the others each other's, and nobody hears of the decision."""

    def loses(sender: int, receiver: int, message: Message) -> bool:
        if isinstance(message, Vote) and (message.kind, message.round) == (VoteKind.PRECOMMIT, round_):
            return receiver != 0 and sender == 0
        return isinstance(message, Decided | Pending) or (0 in (sender, receiver) and _is_later(message, round_))

    return loses


def _is_later(message: Message, round_: int) -> bool:
    """Node 0 is cut off once it has decided."""
    if isinstance(message, Vote):
        return message.round > round_
    return not isinstance(message, ProposalMessage) or message.proposal.round > round_


@contextmanager
def _after_hidden_decision(mutation: Mutation) -> Iterator[tuple[World, Puppet]]:
    """Node 0 decided the puppet's block of round 0, 1 and 2 are locked on it and in round 2, which the puppet leads."""
    with played(four(queue=(PUPPET,), faults={PUPPET: Fault.TRAITOR}), mutation) as world:
        world.oracle.are_votes_checked = False
        for number in range(PUPPET):
            world.nodes[number].boot()
        world.network.adversary = Filter(_hides_decision(0))
        puppet = Puppet(world)
        puppet.propose(0, puppet.block(0), 0, 1, 2)
        world.run(100)
        puppet.vote(VoteKind.PRECOMMIT, 0, NIL, 1, 2)
        world.run(400)
        for kind in VoteKind:
            puppet.vote(kind, 1, NIL, 1, 2)
            world.run(500)
        _require([world.nodes[number].chain.height for number in range(3)] == [1, 0, 0])
        _require([world.nodes[number].machine.round for number in (1, 2)] == [2, 2])
        yield world, puppet
        world.run(2_000)
        world.heal()
        world.run(5_000, lambda: all(world.nodes[number].chain.height >= 1 for number in range(3)))
        assert all(world.nodes[number].chain.height >= 1 for number in range(3))


def new_block_against_the_lock(mutation: Mutation = nullcontext) -> None:
    """Two are locked on what one has decided; a leader proposes something new."""
    with _after_hidden_decision(mutation) as (world, puppet):
        world.run(5)
        block = puppet.block(2)
        puppet.propose(2, block, 1, 2)
        world.run(50)
        puppet.support(2, block, 1, 2)


def false_certificate_against_the_lock(kind: str, mutation: Mutation = nullcontext) -> None:
    """The leader claims that its block had its quorum of prevotes in round 1."""
    with _after_hidden_decision(mutation) as (world, puppet):
        world.run(5)
        block = puppet.block(0)
        own = puppet.vote(VoteKind.PREVOTE, 1, block.id)
        forged = [Vote(VoteKind.PREVOTE, 1, 1, block.id, key.account, Signature(bytes(64))) for key in KEYS[:3]]
        certificates = {"none": (), "one": (own,), "one three times": (own,) * 3, "forged": (*forged, own)}
        puppet.propose(2, block, 1, 2, valid_round=1, certificate=certificates[kind])
        world.run(50)
        puppet.support(2, block, 1, 2)


def stale_certificate_against_the_lock(mutation: Mutation = nullcontext) -> None:
    """A block had its quorum in round 0, another one in round 1 and was decided; the first is proposed again."""

    def loses(sender: int, receiver: int, message: Message) -> bool:
        if isinstance(message, Vote) and (message.kind, message.round) == (VoteKind.PREVOTE, 0):
            return sender != (receiver + 1) % 3
        return _hides_decision(1)(sender, receiver, message)

    with played(four(queue=(PUPPET, 0), faults={PUPPET: Fault.TRAITOR}), mutation) as world:
        world.oracle.are_votes_checked = False
        for number in range(PUPPET):
            world.nodes[number].boot()
        spy = world.network.adversary = Filter(loses)
        puppet = Puppet(world)
        transact(world, 0)
        world.run(60)
        _require(len(world.oracle.blocks) == 1)
        first, block = next(iter(world.oracle.blocks.items()))
        puppet.vote(VoteKind.PREVOTE, 0, NIL, 0, 1, 2)
        world.run(900, lambda: world.nodes[0].chain.height == 1)
        _require([decided.commit.round for decided in world.nodes[0].chain.decisions] == [1])
        puppet.vote(VoteKind.PRECOMMIT, 1, NIL, 1, 2)
        world.run(400)
        _require([world.nodes[number].machine.round for number in (1, 2)] == [2, 2])
        puppet.propose(2, block, 1, 2, valid_round=0, certificate=spy.prevotes(0, first))
        world.run(50)
        puppet.support(2, block, 1, 2)
        world.run(2_000)
        world.heal()
        world.run(5_000, lambda: all(world.nodes[number].chain.height >= 1 for number in range(3)))


def amnesia(how: str, mutation: Mutation = nullcontext) -> None:
    """Node 0 decides height 1 unheard; 1 and 2, who precommitted, restart; then they meet 3, who knows of nothing.

    0: decides X  | cut off from here on
    1: precommits X, dies, restarts and leads
    2: precommits X, dies, restarts
    3: cut off    | joins
    """
    with played(four(), mutation) as world:
        world.network.separate(((3,), (0, 1, 2)))
        world.network.adversary = Filter(_hides_decision(0))
        world.boot()
        transact(world, 1)
        world.run(3_000, lambda: world.nodes[0].chain.height == 1)
        _require([world.nodes[number].chain.height for number in range(4)] == [1, 0, 0, 0])
        for number in (1, 2):
            node = world.nodes[number]
            node.is_power_cut = how != "killed"
            node.crash()
            if how == "log erased":
                node.remove_log()
            if how == "log damaged":
                node.disk.rot(WAL, 20)
        world.network.heal()
        world.network.separate(((0,), (1, 2, 3)))
        for number in (1, 2):
            world.nodes[number].boot()
        transact(world, 2)
        world.run(5_000)
        if how == "log damaged":
            assert all(world.nodes[number].refusal is not None for number in (1, 2)), "they go on with a damaged log"
            return
        world.heal()
        world.run(5_000, lambda: min(world.nodes[number].chain.height for number in range(4)) >= 1)
        assert min(world.nodes[number].chain.height for number in range(4)) >= 1


def chain_lost(mutation: Mutation = nullcontext) -> None:
    """A leader loses its database but not its log, and comes back alone: it must not propose at old heights again."""
    with played(four(queue=(1,)), mutation) as world:
        world.boot()
        for number in range(4):
            transact(world, number)
            world.run(1_000)
        node = world.nodes[1]
        _require(node.chain.height >= 4)
        node.crash()
        node.lose_chain()
        world.network.separate(((1,), (0, 2, 3)))
        node.boot()
        transact(world, 1)
        world.run(2_000)
        world.heal()
        world.run(3_000, lambda: node.chain.height >= 4)
        assert node.chain.height >= 4


def lying_leader(lie: str, mutation: Mutation = nullcontext) -> None:
    """A leader breaks one rule whenever it leads; the others go on without it."""
    setting = four(queue=(PUPPET,), faults={PUPPET: Fault.TRAITOR}, vices={PUPPET: frozenset({Vice.LIE})})
    with played(setting, mutation) as world:
        liar = world.nodes[PUPPET]
        assert isinstance(liar, Traitor)
        liar.lies = (lie,)
        world.around.are_accusations_held = True
        world.boot()
        for nonce in range(3):
            for number in range(4):
                transact(world, number, nonce=nonce)
                world.run(400)
        world.run(10_000, lambda: world.nodes[0].chain.height >= 4)
        assert world.nodes[0].chain.height >= 4


def two_proposals(mutation: Mutation = nullcontext) -> None:
    """A leader proposes two blocks to everybody: everybody has evidence."""
    with played(four(queue=(PUPPET,), faults={PUPPET: Fault.TRAITOR}), mutation) as world:
        for number in range(PUPPET):
            world.nodes[number].boot()
        puppet = Puppet(world)
        for _ in range(2):
            puppet.propose(0, puppet.block(0), 0, 1, 2)
            world.run(1)
        world.run(3_000)
        assert world.oracle.is_punished(world.nodes[0].chain)
        assert world.oracle.seen_evidence


SCRIPTS: dict[str, Script] = {
    "new block against the lock": new_block_against_the_lock,
    **{
        f"false certificate ({kind})": partial(false_certificate_against_the_lock, kind)
        for kind in ("none", "one", "one three times", "forged")
    },
    "stale certificate": stale_certificate_against_the_lock,
    **{f"amnesia ({how})": partial(amnesia, how) for how in ("killed", "power cut", "log damaged")},
    "chain lost": chain_lost,
    "two proposals": two_proposals,
    **{f"lying leader ({lie})": partial(lying_leader, lie) for lie in sorted(LIES)},
}
"""All scripts, by name."""
