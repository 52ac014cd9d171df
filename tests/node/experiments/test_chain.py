"""The ledger of an experiment: real transactions and blocks, with models that are only named."""

from collections.abc import Sequence

import pytest

from bflnode.consensus.clustering import cluster, triangle_from_matrix
from bflnode.consensus.types import TOKEN, BlobId
from bflnode.node.experiments.chain import ChainOptions, Offer, Outcome, Registration, VirtualChain
from bflnode.node.experiments.file import ExperimentError
from tests.consensus.harness import blob

OPTIONS = ChainOptions(
    name="test",
    seed=1,
    clients=6,
    per_round=4,
    rounds=3,
    clusters=2,
    psi=4,
    reward=20 * TOKEN,
    rho=2,
    architecture="mlp/1x8x8/10",
    classes=2,
    model_bytes=100,
    initial_model=blob("initial"),
    probe_set=blob("probe"),
    epochs=1,
    batch_size=1,
    learning_rate_micro=1000,
)


def open_chain(clients: Sequence[int] = (0, 1, 2, 3)) -> VirtualChain:
    chain = VirtualChain(OPTIONS, lambda client: Registration(10 + client, (10, client)))
    chain.open(clients)
    return chain


def models(clients: Sequence[int], number: int) -> dict[int, tuple[BlobId, int]]:
    return {client: (blob("model", client, number), 100) for client in clients}


def aggregate(offer: Offer) -> Outcome:
    """The first three clients are alike, the others too."""
    alike = [
        [10_000 if (a < 3) == (b < 3) else 0 for b in range(len(offer.clients))] for a in range(len(offer.clients))
    ]
    labels = cluster(alike, 2)
    outputs = tuple(blob("output", offer.probe_seed, label) for label in sorted(set(labels)))
    return Outcome(triangle_from_matrix(alike), outputs)


def test_a_round_is_clustered_and_paid_by_the_ledger() -> None:
    chain = open_chain()

    settled = chain.play_round(models((0, 1, 2, 3), 1), (), aggregate)

    assert [chain.number_of(client.account) for client in settled.clients] == [0, 1, 2, 3]
    assert [client.cluster for client in settled.clients] == [0, 0, 0, 1]
    assert [client.gross for client in settled.clients] == [6 * TOKEN] * 3 + [2 * TOKEN]
    paid = sum(client.gross - client.fee for client in settled.clients) + settled.aggregator_income
    assert paid == 20 * TOKEN
    assert settled.aggregation is not None
    assert [chain.base(client) for client in range(4)] == [settled.aggregation.outputs[n] for n in (0, 0, 0, 1)]


def test_clients_of_the_next_round_register_and_those_who_arent_leave() -> None:
    chain = open_chain()

    first = chain.play_round(models((0, 1, 2, 3), 1), (1, 3, 4, 5), aggregate)
    second = chain.play_round(models((1, 3, 4, 5), 2), (0, 1, 2, 3), aggregate)

    assert first.aggregation is not None
    assert [chain.number_of(client.account) for client in second.clients] == [1, 3, 4, 5]
    outputs = first.aggregation.outputs
    assert [client.base for client in second.clients] == [outputs[0], outputs[1], outputs[0], outputs[0]]


def test_a_client_that_sends_what_it_received_is_a_copy_and_gets_nothing() -> None:
    chain = open_chain()
    sent = {**models((0, 1, 2, 3), 1), 3: (OPTIONS.initial_model, 100)}

    settled = chain.play_round(sent, (), aggregate)

    assert [client.exclusion.name for client in settled.clients] == ["NONE", "NONE", "NONE", "COPY"]
    assert settled.clients[3].gross == 0
    assert chain.base(3) == chain.base(0)


def test_a_round_without_models_of_their_own_is_void_and_says_why() -> None:
    chain = open_chain()

    with pytest.raises(ExperimentError, match="learning round 1 is void: only 0 clients revealed a model of their own"):
        chain.play_round(dict.fromkeys((0, 1, 2, 3), (OPTIONS.initial_model, 100)), (), aggregate)


def test_blocks_that_were_written_down_lead_to_the_same_head_and_the_next_round() -> None:
    chain = open_chain()
    chain.play_round(models((0, 1, 2, 3), 1), (0, 1, 2, 3), aggregate)
    blocks = chain.take_blocks()
    again = VirtualChain(OPTIONS, lambda client: Registration(10 + client, (10, client)))

    again.replay(blocks, "start anew")
    assert again.head == chain.head
    for each in (chain, again):
        each.play_round(models((0, 1, 2, 3), 2), (), aggregate)

    assert again.head == chain.head
    assert again.take_blocks() == chain.take_blocks()


def test_a_damaged_block_is_refused() -> None:
    chain = open_chain()
    chain.play_round(models((0, 1, 2, 3), 1), (), aggregate)
    blocks = chain.take_blocks()
    broken = bytes([*blocks[1][:-1], blocks[1][-1] ^ 1])

    with pytest.raises(ExperimentError, match=r"block 2 of the run is damaged.*: start anew"):
        VirtualChain(OPTIONS, lambda client: Registration(10 + client, (10, client))).replay(
            [blocks[0], broken], "start anew"
        )
