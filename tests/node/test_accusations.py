"""Evidence that a node found: on disk, sent until it has worked, and never against oneself."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bflnode.consensus.block import NIL, VoteKind, sign_vote
from bflnode.consensus.evidence import make_evidence
from bflnode.consensus.rejection import Reason, Rejection
from bflnode.consensus.tables import stake_of
from bflnode.consensus.transaction import Evidence, Transaction
from bflnode.consensus.types import BlockId
from bflnode.node.accusations import Accusations
from bflnode.storage.errors import StorageError
from tests.node.drivers import Site, Wires, genesis_of, key_of

Open = Callable[[], Accusations]


class Case:
    """A chain without a network, what was sent, and the accusations on it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder / "evidence"
        self.site = Site(Wires(), 0, folder, genesis_of(4), stack)
        self.sent: list[Transaction] = []
        self.refusal: Rejection | None = None
        self.accusations = self.open()

    def open(self) -> Accusations:
        return Accusations(self.folder, self.site.chain, self.site.key, self._submit)

    def proof(self, number: int, round_: int = 0) -> Evidence:
        votes = (
            sign_vote(key_of(number), self.site.chain.genesis.chain_id, VoteKind.PREVOTE, 1, round_, block_id)
            for block_id in (NIL, BlockId(bytes([1]) * 32))
        )
        return make_evidence(*votes)

    async def include(self) -> None:
        """A block with what was sent last, as if it were final."""
        block = self.site.chain.build(self.site.key.account, round_=0, time_ms=0, candidates=self.sent[-1:])
        execution = self.site.chain.validate(block)
        self.site.chain.tree.apply(execution.changes)
        self.site.chain.tip_header = block.header

    def _submit(self, transaction: Transaction) -> None:
        self.sent.append(transaction)
        if self.refusal is not None:
            raise self.refusal


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    with ExitStack() as stack:
        yield Case(tmp_path, stack)


async def test_a_proof_is_kept_and_sent_until_the_offender_is_punished(case: Case) -> None:
    case.accusations.accuse(case.proof(1))
    assert [transaction.body for transaction in case.sent] == [case.proof(1)]
    assert len(list(case.folder.iterdir())) == 1
    case.accusations.review()
    assert [transaction.id for transaction in case.sent] == [case.sent[0].id] * 2
    await case.include()
    assert stake_of(case.site.chain.tree, key_of(1).account).is_tombstoned
    case.accusations.review()
    assert (len(case.sent), len(case.accusations), list(case.folder.iterdir())) == (2, 0, [])


async def test_a_second_proof_against_the_same_account_changes_nothing(case: Case) -> None:
    case.accusations.accuse(case.proof(1))
    case.accusations.accuse(case.proof(1, round_=3))
    assert len(case.sent) == 1
    case.accusations.accuse(case.proof(2))
    assert len(case.accusations) == 2


async def test_a_proof_survives_the_end_of_the_node(case: Case) -> None:
    case.accusations.accuse(case.proof(1))
    again = case.open()
    assert len(again) == 1
    again.review()
    assert [transaction.id for transaction in case.sent] == [case.sent[0].id] * 2


async def test_a_punished_or_poor_account_is_not_accused(case: Case) -> None:
    case.accusations.accuse(case.proof(9))
    assert (case.sent, list(case.folder.iterdir())) == ([], [])


async def test_a_node_does_not_accuse_itself_but_says_that_its_key_is_used_twice(
    case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    case.accusations.accuse(case.proof(0))
    assert (case.sent, len(case.accusations)) == ([], 0)
    assert "another node signs with this node's key" in caplog.text


async def test_a_refused_transaction_is_tried_again(case: Case) -> None:
    case.refusal = Rejection(Reason.LIMIT, waiting=5_000)
    case.accusations.accuse(case.proof(1))
    case.refusal = None
    case.accusations.review()
    assert len(case.sent) == 2


async def test_a_damaged_file_is_removed(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    case.accusations.accuse(case.proof(1))
    [path] = case.folder.iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert len(case.open()) == 0
    assert not path.exists()
    assert "is no evidence any more" in caplog.text


async def test_a_folder_that_cannot_be_written_is_the_disk_s_fault(case: Case) -> None:
    case.folder.rmdir()
    case.folder.write_text("in the way")
    with pytest.raises(StorageError, match="keeping evidence failed"):
        case.accusations.accuse(case.proof(1))
