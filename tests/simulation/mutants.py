"""Products with a defect, made by patching: a simulator that doesn't notice one proves nothing about it.

Each mutant is a context manager; nothing in the product knows of it. What checks a run in the end (`Oracle.judge`) runs
without it.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from bflnode.consensus import learning_round, ledger, quorum
from bflnode.consensus.block import NIL, Proposal, Vote, VoteKind
from bflnode.consensus.machine import Machine
from bflnode.consensus.quorum import ValidatorSet
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.votes import Added, VoteBook
from bflnode.consensus.workspace import Workspace
from bflnode.storage import signer_wal
from bflnode.storage.signer_wal import Mark, SignerWal


@dataclass(frozen=True, slots=True)
class Mutant:
    """A defect.

    Attributes:
        name: what is wrong, for people.
        mutation: makes the product so.
        scripts: that are known to notice it.
        seeds: that are known to notice it; looked at where no script does.
    """

    name: str
    mutation: Callable[[], AbstractContextManager[object]]
    scripts: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()


def replaced(owner: object, name: str, wrap: Callable[[Any], Any]) -> Callable[[], AbstractContextManager[object]]:
    """A mutation that puts something else in the place of a function, given the function."""
    return lambda: patch.object(owner, name, wrap(getattr(owner, name)))


def together(*mutations: Callable[[], AbstractContextManager[object]]) -> Callable[[], AbstractContextManager[object]]:
    @contextmanager
    def enter() -> Iterator[None]:
        with ExitStack() as stack:
            for mutation in mutations:
                stack.enter_context(mutation())
            yield

    return enter


def does_nothing(result: object = None) -> Callable[[Any], Any]:
    return lambda _: lambda *arguments, **named: result


def passes(reason: Reason) -> Callable[[Any], Any]:
    """A check that finds everything but one thing."""

    def wrap(check: Any) -> Any:
        def mutated(*arguments: Any) -> Any:
            try:
                return check(*arguments)
            except Rejection as rejection:
                if rejection.reason is not reason:
                    raise

        return mutated

    return wrap


def _without_lock(rule: Any) -> Any:
    def mutated(self: Machine) -> bool:
        lock = self._locked_round, self._locked_id
        self._locked_round, self._locked_id = -1, NIL
        try:
            return rule(self)
        finally:
            if (self._locked_round, self._locked_id) == (-1, NIL):
                self._locked_round, self._locked_id = lock

    return mutated


def _with_event(**changes: bool) -> Callable[[Any], Any]:
    return lambda receive: lambda self, event: receive(self, replace(event, **changes))


def _certificate_by_votes(check: Any) -> Any:
    def mutated(self: Machine, message: Any) -> None:
        weight = sum(self._validators.stake_of(vote.validator) for vote in message.certificate)
        if not self._validators.is_quorum(weight):
            raise Rejection(Reason.NO_QUORUM)

    return mutated


def _proposes_without_certificate(begin: Any) -> Any:
    def mutated(self: Machine) -> None:
        begin(self)
        self._effects = [
            replace(effect, certificate=()) if type(effect).__name__ == "SignProposal" else effect
            for effect in self._effects
        ]

    return mutated


def _forgets_valid_value(begin: Any) -> Any:
    def mutated(self: Machine) -> None:
        self._valid = None
        begin(self)

    return mutated


def _counts_twice(add: Any) -> Any:
    def mutated(self: VoteBook, vote: Vote) -> Added:
        added = add(self, vote)
        if not added.is_new:
            slot = self._slots[vote.round, vote.kind]
            slot.weights[vote.block_id] = slot.weights.get(vote.block_id, 0) + self._validators.stake_of(vote.validator)
        return added

    return mutated


def _counts_heads(has_quorum: Any) -> Any:
    def mutated(self: VoteBook, round_: int, kind: VoteKind, block_id: Any) -> bool:
        return 3 * len(self.votes_for(round_, kind, block_id)) > 2 * len(self._validators)

    return mutated


def _third_is_enough(of: VoteKind) -> Callable[[Any], Any]:
    def wrap(has_quorum: Any) -> Any:
        def mutated(self: VoteBook, round_: int, kind: VoteKind, block_id: Any) -> bool:
            if kind is not of:
                return has_quorum(self, round_, kind, block_id)
            return self._validators.exceeds_third(self._slot(round_, kind).weights.get(block_id, 0))

        return mutated

    return wrap


def _any_is_enough(has_quorum: Any) -> Any:
    def mutated(self: VoteBook, round_: int, kind: VoteKind, block_id: Any) -> bool:
        return (kind is VoteKind.PREVOTE and block_id != NIL) or has_quorum(self, round_, kind, block_id)

    return mutated


def _sees_no_contradiction(add: Any) -> Any:
    return lambda self, vote: replace(add(self, vote), contradicted=None)


def _writes_nothing(append: Any) -> Any:
    return lambda self, record: self._records.append(record)


def _writes_unsynced(write: Any) -> Any:
    def mutated(descriptor: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[signer_wal.os.write(descriptor, view) :]

    return mutated


def _writes_no_mark(frame: Any) -> Any:
    return lambda record: b"" if isinstance(record, Mark) else frame(record)


def _restores_nothing(start: Any) -> Any:
    return lambda self, records=(): start(self)


def _checks_quorum_only(verify: Any) -> Any:
    def mutated(chain_id: Any, validators: ValidatorSet, commit: Any) -> None:
        with patch.object(ledger, "verify", lambda *arguments: None):
            verify(chain_id, validators, commit)

    return mutated


def _loses_a_token(credit: Any) -> Any:
    return lambda self, account, amount: credit(self, account, max(0, amount - 1))


def _judged_by_a_third(judge: Any) -> Any:
    def mutated(current: Any) -> Any:
        committee = ValidatorSet(current.committee)
        good = committee.weight_of(vote.account for vote in current.attestations if not vote.fault)
        is_good = committee.exceeds_third(good)
        return replace(judge(current), is_good=is_good, is_final=is_good)

    return mutated


def _available_by_a_third(is_complete: Any) -> Any:
    def mutated(_: Any, current: Any) -> bool:
        committee = ValidatorSet(current.committee)
        return committee.exceeds_third(committee.weight_of(vote.account for vote in current.availability))

    return mutated


@contextmanager
def _early_availability() -> Iterator[None]:
    phase = learning_round.Phase.AVAILABLE
    rules = learning_round.PHASES[phase]
    with patch.dict(learning_round.PHASES, {phase: replace(rules, is_complete=_available_by_a_third(None))}):
        yield


MUTANTS = (
    # The lock
    Mutant(
        "lock ignored for new proposals (line 22)",
        replaced(Machine, "_prevote_line_22", _without_lock),
        scripts=("new block against the lock",),
    ),
    Mutant(
        "lock released by any re-proposal (line 28)",
        replaced(Machine, "_prevote_line_28", _without_lock),
        scripts=("stale certificate",),
    ),
    Mutant(
        "valid value not proposed again (line 15)",
        replaced(Machine, "_begin_propose", _forgets_valid_value),
        seeds=(9,),
    ),
    # Certificates
    Mutant(
        "certificate of a re-proposal not checked",
        replaced(Machine, "_check_certificate", does_nothing()),
        scripts=("false certificate (none)",),
    ),
    Mutant(
        "certificate counted by votes, not validators",
        replaced(Machine, "_check_certificate", _certificate_by_votes),
        scripts=("false certificate (one three times)",),
    ),
    Mutant(
        "re-proposal without certificate",
        replaced(Machine, "_begin_propose", _proposes_without_certificate),
        scripts=("stale certificate",),
    ),
    # Proposals
    Mutant(
        "proposer not checked",
        replaced(Machine, "_check_proposal", passes(Reason.WRONG_PROPOSER)),
        scripts=("stale certificate",),
    ),
    Mutant(
        "prevote for invalid blocks",
        replaced(Machine, "_receive_proposal", _with_event(is_valid=True)),
        scripts=("lying leader (another body)",),
    ),
    Mutant(
        "prevote whatever the time",
        replaced(Machine, "_receive_proposal", _with_event(is_timely=True)),
        scripts=("lying leader (far future)",),
    ),
    # Quorums
    Mutant(
        "quorum at exactly two thirds",
        replaced(quorum, "is_quorum", lambda _: lambda w, total: 3 * w >= 2 * total),
        seeds=(1,),
    ),
    Mutant("quorum by heads, not stake", replaced(VoteBook, "has_quorum_for", _counts_heads), seeds=(0,)),
    Mutant("vote counted twice", replaced(VoteBook, "add", _counts_twice), scripts=("false certificate (none)",)),
    Mutant(
        "precommit without quorum of prevotes",
        replaced(VoteBook, "has_quorum_for", _any_is_enough),
        scripts=("new block against the lock",),
    ),
    Mutant(
        "precommit with a third",
        replaced(VoteBook, "has_quorum_for", _third_is_enough(VoteKind.PREVOTE)),
        scripts=("amnesia (killed)",),
    ),
    Mutant(
        "decision with a third",
        replaced(VoteBook, "has_quorum_for", _third_is_enough(VoteKind.PRECOMMIT)),
        scripts=("new block against the lock",),
    ),
    # Rounds
    Mutant(
        "round skipped on one word (line 55)",
        replaced(ValidatorSet, "exceeds_third", lambda _: lambda self, w: w > 0),
        seeds=(6,),
    ),
    Mutant(
        "no precommit time-out (line 47)",
        replaced(Machine, "_await_precommits_line_47", does_nothing(False)),
        scripts=("two proposals",),
    ),
    # Signatures
    Mutant(
        "votes' signatures not checked",
        replaced(Vote, "verify_signature", does_nothing()),
        scripts=("false certificate (forged)",),
    ),
    Mutant(
        "proposals' signatures not checked",
        replaced(Proposal, "verify_signature", does_nothing()),
        scripts=("stale certificate",),
    ),
    Mutant(
        "commit signatures not checked",
        replaced(ledger, "verify_commit", _checks_quorum_only),
        scripts=("lying leader (bad last commit)",),
    ),
    Mutant("commit quorum not checked", replaced(ledger, "verify_commit", passes(Reason.NO_QUORUM)), seeds=(0,)),
    # The log
    Mutant("log skipped", replaced(SignerWal, "_append", _writes_nothing), scripts=("amnesia (killed)",)),
    Mutant("log not synced", replaced(signer_wal, "_write", _writes_unsynced), scripts=("amnesia (power cut)",)),
    Mutant("mark lost in compaction", replaced(signer_wal, "_frame", _writes_no_mark), scripts=("chain lost",)),
    Mutant(
        "damaged log cut like a torn one",
        replaced(signer_wal, "_is_torn", does_nothing(True)),
        scripts=("amnesia (log damaged)",),
    ),
    Mutant("log not read at the start", replaced(Machine, "start", _restores_nothing), scripts=("amnesia (killed)",)),
    # Evidence
    Mutant("contradicting votes ignored", replaced(VoteBook, "add", _sees_no_contradiction), seeds=(0,)),
    Mutant(
        "contradicting proposals ignored",
        replaced(Machine, "_contradicted", does_nothing()),
        scripts=("two proposals",),
    ),
    Mutant("evidence not verified", replaced(ledger, "verify_evidence", does_nothing()), seeds=(0,)),
    Mutant("equivocator not punished", replaced(ledger, "tombstone", does_nothing()), scripts=("two proposals",)),
    # Blocks
    Mutant(
        "time of a block not checked",
        replaced(ledger, "_check_place", passes(Reason.WRONG_TIME)),
        scripts=("lying leader (the parent's time)",),
    ),
    Mutant(
        "last commit not checked",
        replaced(ledger, "_check_last_commit", does_nothing()),
        scripts=("lying leader (bad last commit)",),
    ),
    Mutant(
        "state root not checked",
        replaced(ledger, "_check_outcome", does_nothing()),
        scripts=("lying leader (wrong beacon)",),
    ),
    Mutant(
        "nonce not checked",
        replaced(ledger, "_require_payment", passes(Reason.WRONG_NONCE)),
        scripts=("lying leader (a transaction twice)",),
    ),
    # Money and learning
    Mutant(
        "supply leak",
        together(replaced(Workspace, "credit", _loses_a_token), replaced(ledger, "_money", does_nothing(0))),
        scripts=("amnesia (killed)",),
    ),
    Mutant("ATTEST closed by a third", replaced(learning_round, "verdict_on", _judged_by_a_third), seeds=(2,)),
    Mutant("AVAILABLE closed by a third", lambda: _early_availability(), seeds=(10,)),
    Mutant("copied models paid", replaced(learning_round, "_find_copies", does_nothing(frozenset())), seeds=(2,)),
)
"""Every defect, in the order of the table."""
