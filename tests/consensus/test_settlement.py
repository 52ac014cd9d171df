"""What a settlement leaves behind: the models that tell copies are forgotten when they can tell none any more."""

from bflnode.consensus.tables import MODELS
from bflnode.consensus.types import BlobId
from tests.consensus.harness import Harness

MEMORY = 2


def remembered(harness: Harness) -> dict[BlobId, int]:
    """The models seen, and in which learning round they were seen last."""
    return {BlobId(key[32:]): seen.number for key, seen in MODELS.scan(harness.tree, harness.task_id)}


def used_in(number: int, harness: Harness) -> set[BlobId]:
    """The models that a learning round began with, those that were revealed and what came of them."""
    settled = harness.settled(number)
    assert settled.aggregation is not None
    revealed = {client.revealed.model for client in settled.clients if client.revealed is not None}
    return {client.base for client in settled.clients} | revealed | set(settled.aggregation.outputs)


def test_models_that_tell_no_copy_any_more_leave_the_state() -> None:
    harness = Harness(rounds=8, parameters={"copy_memory_rounds": MEMORY})
    harness.register_all()
    sizes = []
    for number in range(1, 8):
        harness.play_round()
        models = remembered(harness)
        kept = range(1, number + 1)[-MEMORY:]
        assert set(models) == set().union(*(used_in(past, harness) for past in kept))
        assert min(models.values()) > number - MEMORY
        sizes.append(len(models))
    assert len(set(sizes[MEMORY:])) == 1, "the record is as long as the memory"
    assert harness.replayed().root == harness.tree.root


def test_a_model_used_again_since_is_remembered_from_its_last_use() -> None:
    """Round 1's output is the base of round 2, which is in the memory one round longer."""
    harness = Harness(rounds=6, parameters={"copy_memory_rounds": MEMORY})
    harness.register_all()
    for _ in range(1 + MEMORY):
        harness.play_round()
    outputs = harness.settled(1).aggregation
    assert outputs is not None
    assert {remembered(harness).get(output) for output in outputs.outputs} == {2}
    harness.play_round()
    assert not set(outputs.outputs) & set(remembered(harness))
