"""The project's rule against cases worked by hand."""

from dataclasses import replace

import numpy as np
import pytest

from bflnode.consensus.clustering import cluster
from bflnode.fl.methods.method import named
from bflnode.fl.methods.registry import make_method
from bflnode.fl.networks import Classifier, get_tensors
from bflnode.fl.prior import WithPrior
from tests.fl.methods.clients import gathered, initial, is_close, local, sent, shifted


def test_a_row_of_the_decision_layer_is_the_mean_over_the_holders_of_its_class() -> None:
    method = make_method("prior-rows", {"server_step": 1.0})
    one, two = shifted(initial(), 1.0), shifted(initial(), 3.0)

    given = method.aggregate(gathered(sent(0, one, histogram=(5, 5, 0)), sent(1, two, histogram=(0, 5, 0)))).newcomers

    first, second = initial()["decision.bias"][0] + 1.0, initial()["decision.bias"][1] + 2.0
    assert np.allclose(given["decision.bias"], [first, second, (first + second) / 2], atol=1e-6)
    assert np.allclose(given["representation.hidden.bias"], shifted(initial(), 2.0)["representation.hidden.bias"])


def test_a_server_step_above_one_goes_beyond_the_mean() -> None:
    given = make_method("prior-rows", {"server_step": 2.0}).aggregate(gathered(sent(0, shifted(initial(), 1.0))))

    assert is_close(given.newcomers, shifted(initial(), 2.0))


def test_the_prior_is_the_logarithm_of_class_shares_and_never_sent() -> None:
    method = make_method("prior-rows", {})
    client = local(labels=[0, 1, 1, 1])
    model = method.personal_model(client)

    assert isinstance(model, WithPrior)
    assert model.log_prior.tolist() == pytest.approx([np.log(0.25), np.log(0.75), -np.inf])
    update = method.train(client)
    assert set(update.sent) == set(initial())
    assert np.array_equal(update.sent["decision.weight"][2], client.received["decision.weight"][2])


@pytest.mark.parametrize(("number", "ahead"), [(2, 3.5), (5, 3.5), (10, 0.875)])
def test_training_starts_ahead_of_what_was_received_in_the_direction_of_the_last_round(
    number: int, ahead: float
) -> None:
    method = make_method("prior-rows", {"momentum": 0.5})
    before = method.train(replace(local(), round=number - 1))

    client = replace(local(received=shifted(initial(), 7.0), kept=before.kept), round=number)
    start = method.train(client).start

    assert isinstance(start, WithPrior)
    assert is_close(get_tensors(start.classifier), shifted(initial(), 7.0 + ahead))


def test_a_client_predicts_between_what_it_received_and_what_it_sent_last() -> None:
    method = make_method("prior-rows", {"memory": 0.25})
    before = method.train(local())

    client = replace(local(received=shifted(initial(), 8.0), kept=before.kept), round=2)
    model = method.personal_model(client)

    assert isinstance(model, WithPrior)
    expected = {name: 0.75 * tensor + 0.25 * before.sent[name] for name, tensor in client.received.items()}
    assert is_close(get_tensors(model.classifier), expected)
    general = method.general_model(client)
    assert isinstance(general, Classifier)
    assert is_close(get_tensors(general), client.received)


def test_a_client_that_took_no_part_in_the_round_before_has_neither_momentum_nor_memory() -> None:
    method = make_method("prior-rows", {})
    kept = method.train(replace(local(), round=2)).kept

    client = replace(local(received=shifted(initial(), 7.0), kept=kept), round=4)

    for model in (method.personal_model(client), method.train(client).start):
        assert isinstance(model, WithPrior)
        assert is_close(get_tensors(model.classifier), client.received)


@pytest.mark.parametrize(("shared", "parts"), [(1.0, (2.0, 2.0)), (0.5, (1.5, 2.5)), (0.0, (1.0, 3.0))])
def test_a_cluster_receives_its_own_mean_and_a_part_of_everybodys(shared: float, parts: tuple[float, float]) -> None:
    method = make_method("prior-rows", {"server_step": 1.0, "shared": shared, "similarity": "prototypes"})
    one, two = shifted(initial(), 1.0), shifted(initial(), 3.0)

    given = method.aggregate(gathered(sent(0, one), sent(1, two), labels=(0, 1)))

    for received, part in zip(given.received, parts, strict=True):
        assert is_close(named("representation", received), named("representation", shifted(initial(), part)))
        assert is_close(named("decision", received), named("decision", shifted(initial(), 2.0)))


@pytest.mark.parametrize(
    ("likeness", "shared", "part"),
    [(10_000, 0.0, 1.0), (5_000, 0.0, 4 / 3), (5_000, 0.75, 1.75), (0, 0.0, 2.0), (-5_000, 0.0, 2.0)],
)
def test_the_less_clusters_steps_differ_the_more_they_share(likeness: int, shared: float, part: float) -> None:
    """Two pairs; within a pair steps correlate by L, between pairs not: F is (1 + L) / (1 - L)."""
    matrix = (10_000 * np.eye(4)).astype(np.int16)
    matrix[[0, 1, 2, 3], [1, 0, 3, 2]] = likeness
    models = [shifted(initial(), by) for by in (0.0, 2.0, 2.0, 4.0)]
    method = make_method("prior-rows", {"server_step": 1.0, "shared": shared})

    offered = gathered(*(sent(client, own) for client, own in enumerate(models)), labels=(0, 0, 1, 1))
    given = method.aggregate(replace(offered, matrix=matrix))

    assert is_close(named("representation", given.received[0]), named("representation", shifted(initial(), part)))


def test_clients_with_alike_steps_are_together_under_similarity_by_updates() -> None:
    generator = np.random.default_rng(3)
    noise = [{name: generator.normal(size=tensor.shape) for name, tensor in initial().items()} for _ in range(2)]
    tensors = [
        {
            name: (tensor + (1 + client) * noise[client % 2][name]).astype(np.float32)
            for name, tensor in initial().items()
        }
        for client in range(4)
    ]
    method = make_method("prior-rows", {"similarity": "updates", "shared": 0.5, "clusters": 2})

    offered = gathered(*(sent(client, own) for client, own in enumerate(tensors)))
    given = method.aggregate(replace(offered, cluster=lambda matrix, count: cluster(matrix.astype(np.int64), count)))

    assert given.labels == (0, 1, 0, 1)


def test_without_a_prior_all_classes_count_alike_and_without_a_mask_absent_ones_count_half_a_sample() -> None:
    client = local(labels=[0, 1, 1, 1])

    none, unmasked = (
        make_method("prior-rows", settings).personal_model(client) for settings in ({"prior": False}, {"mask": False})
    )

    assert isinstance(none, WithPrior)
    assert isinstance(unmasked, WithPrior)
    assert none.log_prior.tolist() == pytest.approx([np.log(1 / 3)] * 3)
    assert unmasked.log_prior.tolist() == pytest.approx(np.log([1 / 4.5, 3 / 4.5, 0.5 / 4.5]).tolist())


def test_without_rows_the_decision_layer_is_the_mean_over_all() -> None:
    one, two = shifted(initial(), 1.0), shifted(initial(), 3.0)

    given = make_method("prior-rows", {"rows": False, "server_step": 1.0}).aggregate(
        gathered(sent(0, one, histogram=(5, 5, 0)), sent(1, two, histogram=(0, 5, 0)))
    )

    assert is_close(given.newcomers, shifted(initial(), 2.0))


@pytest.mark.parametrize(("momentum", "memory"), [(0.7, 0.5), (0.7, 0.0), (0.0, 0.5), (0.0, 0.0)])
def test_only_what_momentum_and_memory_need_is_kept(momentum: float, memory: float) -> None:
    method = make_method("prior-rows", {"momentum": momentum, "memory": memory})
    kept = method.train(local()).kept

    models = bool(momentum) + bool(memory)
    assert len(kept) == models * len(initial()) + bool(models)
    later = replace(local(received=shifted(initial(), 7.0), kept=kept), round=2)
    assert set(method.train(later).kept) == set(kept)
    assert isinstance(method.personal_model(later), WithPrior)


def test_a_client_that_expects_all_classes_alike_predicts_without_its_prior_and_memory() -> None:
    method = make_method("prior-rows", {"expects": "uniform"})
    client = local(labels=[0, 1])
    update = method.train(client)
    later = replace(client, round=2, received=shifted(initial(), 7.0), kept=update.kept)
    remembering = make_method("prior-rows", {}).personal_model(later)

    assert is_close(get_tensors(update.model), update.sent)
    assert is_close(get_tensors(method.personal_model(later)), later.received)
    assert isinstance(remembering, WithPrior)
    assert not is_close(get_tensors(remembering.classifier), later.received)


def test_predictions_for_everybody_are_made_without_the_prior() -> None:
    method = make_method("prior-rows", {})
    client = local(labels=[0, 0])

    general = method.general_model(client)

    assert isinstance(general, Classifier)
    assert is_close(get_tensors(general), client.received)
