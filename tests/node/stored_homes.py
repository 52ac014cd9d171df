"""Homes of nodes with real chains in them: of the ledger's harness, and of a network that trained real models."""

from pathlib import Path
from typing import Any

import tomli_w

from bflnode.consensus.genesis import Genesis, format_genesis
from bflnode.consensus.keys import SecretKey
from bflnode.consensus.ledger import validate_block
from bflnode.consensus.task import Phase, Rule
from bflnode.node.home import Home, make_home
from bflnode.storage.chain_store import ChainStore
from tests.consensus.harness import Harness
from tests.node.learning_chain import CLIENTS, LearningChain

HONEST, ABSENT, COPIER, UNAVAILABLE, SILENT = (0, 1, 2), 3, 4, 5, 6
"""Actors of `faulty_round`, by what they do in its second learning round."""


def home_with(root: Path, genesis: Genesis, key: SecretKey, **settings: Any) -> Home:
    """A home without data, listening on free ports."""
    home = make_home(root, account_seed=key.seed)
    home.genesis_file.write_text(format_genesis(genesis), encoding="utf-8")
    everything = {"name": "tested", "p2p": {"port": 0}, "rpc": {"port": 0}, "training": {"enabled": False}, **settings}
    home.configuration_file.write_text(tomli_w.dumps(everything), encoding="utf-8")
    return home


def store_chain(harness: Harness, folder: Path) -> None:
    """Put a harness's blocks into a chain store, with the commits of its validators."""
    commits = [*(block.last_commit for block in harness.blocks[1:]), harness.last_commit]
    with ChainStore.create(folder, harness.genesis) as store:
        tree, parent = store.load_state(), None
        for block, commit in zip(harness.blocks, commits, strict=True):
            execution = validate_block(harness.genesis, tree, parent, block)
            store.append(block, commit, execution.changes)
            tree.apply(execution.changes)
            parent = block.header


def home_of(root: Path, harness: Harness, actor: int = 0) -> Home:
    """The home of one of a harness's actors, with its whole chain."""
    home = home_with(root, harness.genesis, harness.keys[actor])
    store_chain(harness, home.chain)
    return home


def faulty_round() -> Harness:
    """Two settled learning rounds: all are honest in the first, in the second four are left out for four reasons."""
    harness = Harness(actors=7, rounds=3)
    harness.register_all()
    harness.play_round()
    slot = harness.slot
    copied = harness.model(HONEST[0], slot)
    committing = [harness.commit(actor) for actor in (*HONEST, UNAVAILABLE, SILENT)]
    harness.block(*committing, harness.commit(COPIER, copied))
    harness.wait_until_due()
    assert harness.phase is Phase.REVEAL
    revealing = [harness.reveal(actor) for actor in (*HONEST, UNAVAILABLE)]
    harness.block(*revealing, harness.reveal(COPIER, copied))
    harness.wait_until_due()
    assert harness.phase is Phase.AVAILABLE
    harness.block(*(harness.available(actor, HONEST) for actor in harness.validators))
    harness.play_to(Phase.ATTEST)
    harness.block(*(harness.attest(actor) for actor in harness.validators))
    assert harness.slot.number == 3
    return harness


def faulty_home(root: Path, actor: int = 0) -> tuple[Home, Harness]:
    """The home of an actor of `faulty_round`."""
    harness = faulty_round()
    return home_of(root, harness, actor), harness


def learning_keys() -> tuple[SecretKey, ...]:
    """The keys of `LearningChain`, ascending by account."""
    return tuple(sorted((SecretKey(bytes([seed]) * 32) for seed in range(1, CLIENTS + 1)), key=lambda key: key.account))


def learning_home(root: Path, rounds: int = 2, rule: Rule = Rule.PAA) -> Home:
    """The home of the first client of a network that trained real models, which are all in it."""
    chain = LearningChain(root / "data", rule=rule)
    chain.register_all()
    for _ in range(rounds):
        chain.run_round()
    chain.store.close()
    return home_with(root, chain.store.genesis, learning_keys()[0])
