"""What a node does at its start about a home that lost something: a damaged chain, a signer's log that is gone.

A damaged chain is moved aside, never repaired, and fetched from peers anew; the signer's log stays and keeps this key
from voting on heights that it has voted on. A log that is gone has forgotten the votes on the next height; older ones
don't matter, since a node votes on no height that it has the block of. An old copy of a log that was put back shows
later, when a block comes that this key has signed: see `AgreementDriver`.
"""

import logging
from pathlib import Path

from bflnode.consensus.tables import current_validators
from bflnode.consensus.types import AccountId
from bflnode.storage.chain_store import ChainStore
from bflnode.storage.durable import sync_folder
from bflnode.storage.errors import CorruptStore, from_os_error
from bflnode.storage.signer_wal import SignerWal

from .chain import Chain
from .home import Home
from .stored_chain import open_store

_log = logging.getLogger(__name__)

MAX_ASIDE = 3
"""Damaged chains that are kept beside the new one: a disk that damages more than that must be looked at by a person."""


def open_chain(home: Home, account: AccountId) -> ChainStore:
    """The chain of a home, checked as a whole; a damaged one is moved aside and begun anew. The home's lock is held.

    Raises:
        HomeError: it is of another chain.
        CorruptStore: it is damaged and isn't moved aside, because nobody else may have it, or for the fourth time.
        StorageError: the disk is at fault.
    """
    try:
        return _open_checked(home)
    except CorruptStore as damage:
        _require_others(home, account, damage)
        aside = _move_aside(home.chain, damage)
        _log.error(
            "the chain is damaged: %s: %s. It was moved aside to %s and is fetched from peers anew; the signer's log "
            "stays, so this node doesn't vote until it is where it was. Remove %s once all is well",
            *(damage.path, damage.cause, aside, aside.name),
        )
    return _open_checked(home)


def _open_checked(home: Home) -> ChainStore:
    store = open_store(home)
    try:
        store.check()
    except BaseException:
        store.close()
        raise
    return store


def _require_others(home: Home, account: AccountId, damage: CorruptStore) -> None:
    """Refuse to begin anew where no other validator has the chain, once it was whole: then the log was begun."""
    validators = [entry.account for entry in home.load_genesis().validators]
    has_begun = home.signer_wal.exists() and home.signer_wal.stat().st_size > 0
    if validators == [account] and has_begun:
        remedy = (
            "This node is the chain's only validator, so nobody else may have it: put back a copy of this folder from "
            "a backup, or fetch it from a node that follows: move this folder aside, keep the signer's log, and start"
        )
        raise CorruptStore(damage.path, damage.cause, remedy) from damage


def _move_aside(path: Path, damage: CorruptStore) -> Path:
    """Rename a damaged store so that it is out of the way and nothing of it is lost."""
    candidates = [path.with_name(f"{path.name}.damaged-{number}") for number in range(1, MAX_ASIDE + 1)]
    aside = next((candidate for candidate in candidates if not candidate.exists()), None)
    if aside is None:
        remedy = (
            f"{MAX_ASIDE} damaged chains lie beside it already: check this disk and its memory, then remove "
            f"{path.parent / (path.name + '.damaged-*')} and start again"
        )
        raise CorruptStore(path, damage.cause, remedy) from damage
    try:
        path.rename(aside)
        sync_folder(path.parent)
    except OSError as error:
        raise from_os_error(path, "moving the damaged chain aside", error) from error
    return aside


def begin_log(wal: SignerWal, chain: Chain, account: AccountId, *, votes_anyway: bool) -> None:
    """Say in a new signer's log from which height on it knows what this key signs.

    That is the next height, or, where the key may have voted on that one, the height after it. A node that is killed
    before its first signature finds a log that is begun, and needn't be silent. Where the key is the only validator's
    nobody else can go on, so it signs for the next height, also with an old copy of its log.

    Args:
        wal: the signer's log.
        chain: the chain.
        account: of this node.
        votes_anyway: the operator knows that this key has signed nothing for the next height.

    Raises:
        StorageError: the disk is at fault.
    """
    validators = current_validators(chain.tree).accounts
    if votes_anyway or validators == (account,):
        wal.abstain(chain.height)
    elif wal.is_new:
        may_have_signed = chain.height > 0 and account in validators
        if may_have_signed:
            _log.warning(
                "the signer's log %s is new, and what this key signed is forgotten: this node doesn't vote on height "
                "%d. If all validators lost their logs, start them with BFLNODE_SIGNING__NEW_LOG=vote",
                *(wal.path, chain.height + 1),
            )
        wal.abstain(chain.height + may_have_signed)
