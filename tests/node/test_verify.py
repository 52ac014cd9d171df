import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from random import Random

import plyvel
import pytest

from bflnode.consensus.blob import manifest_of
from bflnode.consensus.block import MAX_BLOCK_BYTES, Block, Commit
from bflnode.consensus.keys import account_text
from bflnode.consensus.tables import ACCOUNTS, SETTLED
from bflnode.consensus.task import Combination, ProbeMode, Rule, SettledRound, Similarity, Weighting
from bflnode.consensus.types import AccountId, BlobId, Hash
from bflnode.node.verify import ChainFault, Check, TaskReexecution, Verification, verify_chain
from bflnode.storage.blob_store import BlobStore
from bflnode.storage.chain_store import ChainStore
from tests.node.learning_chain import ARCHITECTURE, CLIENTS, LearningChain

BLOCKS = 16
"""One of registrations and five for each of three learning rounds."""
TRANSACTIONS = CLIENTS + 3 * (4 * CLIENTS + 1)
SETTLED_AT = (6, 11, 16)
"""Heights at which the learning rounds are settled."""


@pytest.fixture(scope="session")
def honest_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished task of three learning rounds, closed; tests work on copies."""
    home = tmp_path_factory.mktemp("honest")
    chain = LearningChain(home)
    chain.register_all()
    for _ in range(3):
        chain.run_round()
    chain.store.close()
    return home


@pytest.fixture
def home(honest_home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(honest_home, tmp_path / "home"))


@pytest.fixture
def chain(tmp_path: Path) -> Iterator[Callable[..., LearningChain]]:
    """Makes chains of one's own, with registered clients."""
    made: list[LearningChain] = []

    def make(**options: object) -> LearningChain:
        made.append(LearningChain(tmp_path / str(len(made)), **options))  # type: ignore[arg-type]  # passed through
        made[-1].register_all()
        return made[-1]

    yield make
    for one in made:
        one.store.close()


def verify(home: Path, *, reexecute: bool = False) -> Verification:
    with ChainStore.open(home / "chain") as store:
        return verify_chain(store, BlobStore(home / "blobs"), reexecute=reexecute)


def tamper(home: Path, table: bytes, height: int, change: Callable[[bytes], bytes | None]) -> None:
    """Change a stored record past LevelDB's checksums, as somebody who can write the disk would."""
    tamper_key(home, table + height.to_bytes(8), change)


def tamper_key(home: Path, key: bytes, change: Callable[[bytes], bytes | None]) -> None:
    database = plyvel.DB(str(home / "chain"))
    old = database.get(key)
    assert old is not None
    new = change(old)
    database.delete(key) if new is None else database.put(key, new)
    database.close()


def flip(position: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        index = position % len(data)
        return data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :]

    return change


def as_block(change: Callable[[Block], Block]) -> Callable[[bytes], bytes]:
    return lambda data: change(Block.from_bytes(data, max_bytes=MAX_BLOCK_BYTES)).to_bytes()


def as_commit(change: Callable[[Commit], Commit]) -> Callable[[bytes], bytes]:
    return lambda data: change(Commit.from_bytes(data, max_bytes=MAX_BLOCK_BYTES)).to_bytes()


def settled_rounds(home: Path) -> list[SettledRound]:
    with ChainStore.open(home / "chain") as store:
        return [settled for _, settled in SETTLED.scan(store.load_state())]


def models_of(settled: SettledRound) -> list[BlobId]:
    return [client.revealed.model for client in settled.clients if client.revealed]


def blob_file(home: Path, blob: BlobId) -> Path:
    return home / "blobs" / blob.hex()[:2] / blob.hex()


def test_honest_chain_is_verified_and_every_learning_round_aggregated_again(home: Path) -> None:
    task = settled_rounds(home)[0].slot.task.hex()
    verification = verify(home, reexecute=True)
    assert verification == Verification(
        chain_id=verification.chain_id,
        tip=BLOCKS,
        verified=BLOCKS,
        transactions=TRANSACTIONS,
        reexecution=(TaskReexecution(task, settled=3, reexecuted=3, possible_from=1, missing=()),),
        fault=None,
    )
    assert verification.is_valid


def test_without_reexecution_no_model_is_read(home: Path) -> None:
    shutil.rmtree(home / "blobs")
    verification = verify(home)
    assert (verification.verified, verification.reexecution, verification.fault) == (BLOCKS, (), None)


def test_progress_is_told_after_each_block(home: Path) -> None:
    heard: list[tuple[int, int]] = []
    with ChainStore.open(home / "chain") as store:
        verify_chain(store, BlobStore(home / "blobs"), reexecute=False, progress=lambda *where: heard.append(where))
    assert heard == [(height, BLOCKS) for height in range(1, BLOCKS + 1)]


def test_chain_without_blocks_is_valid(tmp_path: Path) -> None:
    LearningChain(tmp_path).store.close()
    verification = verify(tmp_path, reexecute=True)
    assert (verification.tip, verification.verified, verification.is_valid) == (0, 0, True)


def test_result_turns_into_json(home: Path) -> None:
    tamper(home, b"c", 3, flip(-1))
    verification = verify(home, reexecute=True)
    assert json.loads(json.dumps(asdict(verification)))["fault"]["height"] == 3


def test_aggregators_own_probe_and_weights_by_samples_are_verified_too(chain: Callable[..., LearningChain]) -> None:
    own = chain(probe_mode=ProbeMode.AGGREGATOR, weighting=Weighting.SAMPLES, probe_labels=(1,) * 4)
    own.run_round()
    own.store.close()
    verification = verify(own.home, reexecute=True)
    assert verification.fault is None
    assert verification.reexecution[0].reexecuted == 1


RULES: tuple[dict[str, object], ...] = (
    {"rule": Rule.PRIOR_ROWS, "step_permille": 2000},
    {"rule": Rule.PRIOR_ROWS, "combination": Combination.MULTI_KRUM},
    {"rule": Rule.PRIOR_ROWS, "shared_permille": 500, "similarity": Similarity.UPDATES},
    {"combination": Combination.MEDIAN},
    {"combination": Combination.NORM_CLIPPING, "step_permille": 1500},
    {"combination": Combination.KRUM},
)


@pytest.mark.parametrize("settings", RULES, ids=lambda settings: " ".join(str(value) for value in settings.values()))
def test_every_rule_is_verified_and_the_plain_mean_in_its_place_is_found(
    chain: Callable[..., LearningChain], settings: dict[str, object]
) -> None:
    made = chain(**settings)
    made.run_round()
    made.run_round()
    assert verify_chain(made.store, made.blobs, reexecute=True).reexecution[0].reexecuted == 2
    made.ignores_rule = True
    made.run_round()
    fault = verify_chain(made.store, made.blobs, reexecute=True).fault
    assert fault is not None
    assert (fault.check, fault.rule, fault.height) == (Check.OUTPUT, "level-2", SETTLED_AT[2])


def test_the_model_that_all_trained_from_is_needed_where_the_rule_says_so(chain: Callable[..., LearningChain]) -> None:
    made = chain(rule=Rule.PRIOR_ROWS, step_permille=2000)
    made.run_round()
    made.run_round()
    task = made.store.genesis.tasks[0].specification
    made.blobs.delete(task.initial_model)

    verification = verify_chain(made.store, made.blobs, reexecute=True)

    assert verification.is_valid
    (report,) = verification.reexecution
    assert (report.settled, report.reexecuted, report.possible_from) == (2, 1, 2)
    assert report.missing == (task.initial_model.hex(),)


def test_updates_are_compared_again_and_a_wrong_similarity_is_found(chain: Callable[..., LearningChain]) -> None:
    made = chain(similarity=Similarity.UPDATES)
    made.blobs.delete(made.store.genesis.tasks[0].specification.probe_set)
    made.run_round()
    assert verify_chain(made.store, made.blobs, reexecute=True).reexecution[0].reexecuted == 1
    made.wrong_matrix = 100
    made.run_round()
    fault = verify_chain(made.store, made.blobs, reexecute=True).fault
    assert fault is not None
    assert (fault.check, fault.rule, fault.height) == (Check.MATRIX, "level-3", SETTLED_AT[1])


@pytest.mark.parametrize("seed", range(12))
def test_any_flipped_bit_in_a_stored_block_is_found_at_its_height(home: Path, seed: int) -> None:
    random = Random(seed)
    height = random.randrange(1, BLOCKS)
    tamper(home, b"b", height, flip(random.randrange(10**6)))
    verification = verify(home)
    assert verification.fault is not None
    assert (verification.fault.height, verification.verified) == (height, height - 1)


def test_unreadable_block_is_named(home: Path) -> None:
    tamper(home, b"b", 4, lambda data: data[:-3])
    fault = verify(home).fault
    assert fault is not None
    assert (fault.height, fault.check, fault.rule) == (4, Check.STORED, "readable")
    assert fault.got.startswith("the block of height 4 can't be read: malformed")


def test_deleted_block_is_named(home: Path) -> None:
    tamper(home, b"b", 4, lambda data: None)
    fault = verify(home).fault
    assert fault is not None
    assert (fault.height, fault.check, fault.got) == (
        4,
        Check.STORED,
        f"the block of height 4 is missing below the tip {BLOCKS}",
    )


def test_transaction_taken_out_of_a_block_breaks_its_transactions_root(home: Path) -> None:
    tamper(home, b"b", 3, as_block(lambda block: replace(block, transactions=block.transactions[1:])))
    fault = verify(home).fault
    assert fault is not None
    assert (fault.height, fault.check, fault.rule) == (3, Check.BLOCK, "wrong-root")
    assert fault.got.startswith("what=transactions, claimed=")


def test_flipped_bit_in_a_stored_commit_is_a_bad_signature(home: Path) -> None:
    tamper(home, b"c", 5, flip(-1))
    fault = verify(home).fault
    assert fault is not None
    assert (fault.height, fault.check, fault.rule) == (5, Check.COMMIT, "bad-signature")


def test_commit_of_half_the_stake_is_no_quorum(home: Path) -> None:
    tamper(home, b"c", 5, as_commit(lambda commit: replace(commit, signatures=commit.signatures[:2])))
    fault = verify(home).fault
    assert fault is not None
    assert (fault.height, fault.check, fault.rule) == (5, Check.COMMIT, "no-quorum")
    assert fault.got == "height=5, stake=10000000, total=20000000"


def test_commit_for_another_block_is_named_with_both_ids(home: Path) -> None:
    other = BlobId(b"\7" * 32)
    with ChainStore.open(home / "chain") as store:
        block_id = store.block(5).id
    tamper(home, b"c", 5, as_commit(lambda commit: replace(commit, block_id=other)))
    assert verify(home).fault == ChainFault(
        height=5,
        check=Check.COMMIT,
        rule="block-id",
        subject="commit of block 5",
        expected=f"height 5, {block_id.hex()}",
        got=f"height 5, {other.hex()}",
    )


def test_header_stored_beside_another_block_is_named(home: Path) -> None:
    with ChainStore.open(home / "chain") as store:
        first, second = store.header(1), store.header(2)
    tamper(home, b"h", 2, lambda data: first.to_bytes())
    assert verify(home).fault == ChainFault(
        2, Check.INDEX, "header", "stored header 2", second.id.hex(), first.id.hex()
    )


def test_wrong_transaction_index_is_named(home: Path) -> None:
    with ChainStore.open(home / "chain") as store:
        transaction = store.block(2).transactions[1].id
    tamper_key(home, b"t" + transaction, lambda place: None)
    assert verify(home).fault == ChainFault(
        2, Check.INDEX, "transaction", transaction.hex(), "block 2, position 1", "indexed at None"
    )


def test_wrong_account_history_is_named(home: Path) -> None:
    client = settled_rounds(home)[0].clients[0]
    with ChainStore.open(home / "chain") as store:
        balance = store.balance_at(client.account, SETTLED_AT[0])
    key = b"a" + client.account + SETTLED_AT[0].to_bytes(8)
    tamper_key(home, key, lambda value: (balance + 1).to_bytes(8))
    fault = ChainFault(
        SETTLED_AT[0], Check.INDEX, "balance", account_text(client.account), str(balance), str(balance + 1)
    )
    assert verify(home).fault == fault


def test_live_state_that_the_blocks_do_not_lead_to_is_named(home: Path) -> None:
    with ChainStore.open(home / "chain") as store:
        root = store.tip().state_root
        store._database.put(b"s" + ACCOUNTS.prefix + bytes(32), b"\x92\x01\x00")
        fault = verify_chain(store, BlobStore(home / "blobs"), reexecute=False).fault
        changed = store.load_state().root
    assert fault == ChainFault(BLOCKS, Check.STATE, "state-root", "live state", root.hex(), changed.hex())


def test_money_out_of_nothing_is_found_although_all_validators_signed_it(chain: Callable[..., LearningChain]) -> None:
    forged = chain()
    thief = AccountId(b"\7" * 32)
    changes = {ACCOUNTS.prefix + thief: b"\x92\x64\x00"}
    root = forged.store.load_state().root_after(changes)
    forged.append_forged(lambda block: replace(block, header=replace(block.header, state_root=root)), changes)
    forged.store.close()
    verification = verify(forged.home)
    assert verification.verified == 1
    assert verification.fault is not None
    assert (verification.fault.height, verification.fault.check, verification.fault.rule) == (
        2,
        Check.BLOCK,
        "wrong-root",
    )
    assert verification.fault.got == f"what=state, claimed={root.hex()}"


def test_header_time_before_its_parent_is_found(chain: Callable[..., LearningChain]) -> None:
    forged = chain()
    time_ms = forged.store.tip().time_ms
    header_change = {"time_ms": time_ms, "state_root": Hash(bytes(32))}
    forged.append_forged(lambda block: replace(block, header=replace(block.header, **header_change)), {})
    fault = verify_chain(forged.store, forged.blobs, reexecute=False).fault
    assert fault is not None
    assert (fault.height, fault.rule, fault.got) == (2, "wrong-time", f"time_ms={time_ms}, parent_ms={time_ms}")


def test_flipped_byte_in_a_stored_model_is_named(home: Path) -> None:
    model = models_of(settled_rounds(home)[1])[2]
    path = blob_file(home, model)
    path.write_bytes(flip(1000)(path.read_bytes()))
    verification = verify(home, reexecute=True)
    fault = verification.fault
    assert fault is not None
    assert (fault.height, fault.check, fault.rule) == (SETTLED_AT[1], Check.MODEL, "content-id")
    assert (fault.subject, fault.expected) == (model.hex(), model.hex())
    assert verification.reexecution[0].reexecuted == 1


def test_flipped_byte_in_a_stored_output_is_named_and_a_pruned_one_is_no_fault(home: Path) -> None:
    settled = settled_rounds(home)[1]
    assert settled.aggregation is not None
    output = settled.aggregation.outputs[0]
    path = blob_file(home, output)
    path.write_bytes(flip(1000)(path.read_bytes()))
    fault = verify(home, reexecute=True).fault
    assert fault is not None
    assert (fault.height, fault.check, fault.subject) == (SETTLED_AT[1], Check.MODEL, output.hex())
    verification = verify(home, reexecute=True)  # it was moved aside
    assert (verification.fault, verification.reexecution[0].reexecuted) == (None, 3)


def test_pruned_models_are_no_fault_but_say_from_which_round_on_it_works(home: Path) -> None:
    rounds = settled_rounds(home)
    pruned = models_of(rounds[1])[:2]
    for model in (*models_of(rounds[0])[:1], *pruned):
        BlobStore(home / "blobs").delete(model)
    verification = verify(home, reexecute=True)
    assert verification.fault is None
    assert verification.reexecution == (
        TaskReexecution(
            rounds[0].slot.task.hex(), settled=3, reexecuted=1, possible_from=3, missing=tuple(m.hex() for m in pruned)
        ),
    )


def test_last_round_pruned_means_that_no_round_can_be_aggregated_from(home: Path) -> None:
    BlobStore(home / "blobs").delete(models_of(settled_rounds(home)[2])[0])
    report = verify(home, reexecute=True).reexecution[0]
    assert (report.reexecuted, report.possible_from) == (2, None)


def test_output_that_is_not_the_mean_is_found_at_level_2(chain: Callable[..., LearningChain]) -> None:
    liar = chain()
    liar.wrong_outputs = True
    liar.run_round()
    liar.store.close()
    claimed = manifest_of([ARCHITECTURE.initial_weights(77)]).id
    fault = verify(liar.home, reexecute=True).fault
    assert fault is not None
    assert (fault.height, fault.check, fault.rule, fault.got) == (SETTLED_AT[0], Check.OUTPUT, "level-2", claimed.hex())
    assert fault.subject.endswith("output of cluster 0")


def test_output_is_checked_even_where_the_probe_is_missing(chain: Callable[..., LearningChain]) -> None:
    liar = chain()
    liar.wrong_outputs = True
    liar.run_round()
    liar.blobs.delete(liar.store.genesis.tasks[0].specification.probe_set)
    fault = verify_chain(liar.store, liar.blobs, reexecute=True).fault
    assert fault is not None
    assert fault.check is Check.OUTPUT


def test_missing_probe_is_reported(home: Path) -> None:
    with ChainStore.open(home / "chain") as store:
        probe = store.genesis.tasks[0].specification.probe_set
    BlobStore(home / "blobs").delete(probe)
    report = verify(home, reexecute=True).reexecution[0]
    assert (report.reexecuted, report.possible_from, report.missing) == (0, None, (probe.hex(),))


@pytest.mark.parametrize(("difference", "is_found"), [(10, False), (11, True)])
def test_similarity_beyond_the_tolerance_is_found_at_level_3(
    chain: Callable[..., LearningChain], difference: int, is_found: bool
) -> None:
    liar = chain()
    assert liar.store.genesis.tasks[0].specification.tolerance == 10
    liar.wrong_matrix = difference
    liar.run_round()
    fault = verify_chain(liar.store, liar.blobs, reexecute=True).fault
    if not is_found:
        assert fault is None
        return
    assert fault is not None
    assert (fault.height, fault.check, fault.rule) == (SETTLED_AT[0], Check.MATRIX, "level-3")
    assert int(fault.got) == int(fault.expected.split()[0]) - difference


def test_similarity_that_rounding_decides_is_no_fault(chain: Callable[..., LearningChain]) -> None:
    made = chain()
    made.drowned, made.wrong_matrix = True, 100
    made.run_round()
    verification = verify_chain(made.store, made.blobs, reexecute=True)
    assert verification.fault is None
    assert verification.reexecution[0].reexecuted == 1


def test_published_probe_of_two_categories_is_found(chain: Callable[..., LearningChain]) -> None:
    liar = chain(probe_mode=ProbeMode.AGGREGATOR, probe_labels=(0, 0, 1, 1))
    liar.run_round()
    fault = verify_chain(liar.store, liar.blobs, reexecute=True).fault
    assert fault is not None
    assert (fault.check, fault.rule, fault.got) == (Check.PROBE, "one-category", "categories [0, 1]")


def test_published_probe_of_too_many_samples_is_found(chain: Callable[..., LearningChain]) -> None:
    liar = chain(probe_mode=ProbeMode.AGGREGATOR, probe_labels=(0,) * 5)
    liar.run_round()
    fault = verify_chain(liar.store, liar.blobs, reexecute=True).fault
    assert fault is not None
    assert (fault.check, fault.rule) == (Check.PROBE, "format")
    assert "4 samples have" in fault.got


def test_models_that_are_not_of_the_tasks_architecture_are_found(chain: Callable[..., LearningChain]) -> None:
    liar = chain(declared_architecture="mlp/1x4x4/3")
    liar.run_round()
    fault = verify_chain(liar.store, liar.blobs, reexecute=True).fault
    assert fault is not None
    assert (fault.height, fault.check, fault.rule) == (SETTLED_AT[0], Check.MODEL, "format")


def test_blocks_that_a_running_node_appends_meanwhile_are_verified_too(chain: Callable[..., LearningChain]) -> None:
    running = chain()
    appended: list[Block] = []

    def progress(height: int, _tip: int) -> None:
        if len(appended) < 2:
            appended.append(running.append_block([]))

    verification = verify_chain(running.store, running.blobs, reexecute=False, progress=progress)
    assert (verification.fault, verification.verified, len(appended)) == (None, 3, 2)
