"""Each method against a case worked by hand, and the rules that all of them keep."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, EntryPoints
from math import inf, nan

import numpy as np
import pytest
import torch
from torch import nn

from bflnode.fl.architectures import architecture
from bflnode.fl.methods import registry
from bflnode.fl.methods.fedproto import COUNTS, PROTOTYPES
from bflnode.fl.methods.method import FedAvg, Method, MethodError, named
from bflnode.fl.methods.mixtures import Mixture
from bflnode.fl.methods.registry import make_method, methods
from bflnode.fl.networks import get_tensors
from bflnode.fl.samples import Shard
from bflnode.fl.training import TrainingConfig, fit, measure
from bflnode.fl.weights import Tensors
from tests.fl.methods.clients import TINY, change, data, gathered, initial, is_close, local, sent, shifted

RESNET = architecture("resnet18/3x32x32/10")
NAMES = sorted(set(methods()) - {"centralised"})


# What holds for all


@pytest.mark.parametrize("name", NAMES)
def test_two_rounds_are_the_same_each_time_and_end_in_models_that_predict(name: str) -> None:
    def run() -> tuple[list[float], Tensors]:
        method = make_method(
            name, {"clusters": 2} if "clusters" in registry.methods()[name].__dataclass_fields__ else {}
        )
        received = [method.start(TINY, initial(), 1)] * 3
        kept: list[Tensors] = [{}] * 3
        shards = [Shard(data(labels, seed), data(labels, seed)) for seed, labels in enumerate(([0, 0, 1], [1, 2], [2]))]
        for number in (1, 2):
            clients = [
                local(client=client, round=number, shard=shards[client], received=received[client], kept=kept[client])
                for client in range(3)
            ]
            updates = [method.train(client) for client in clients]
            kept = [update.kept for update in updates]
            given = method.aggregate(
                gathered(
                    *(
                        sent(at, update.sent, received=received[at], histogram=shards[at].train.histogram())
                        for at, update in enumerate(updates)
                    ),
                    labels=(0, 0, 1),
                )
            )
            received = list(given.received)
        models = [
            method.personal_model(replace(client, received=received[at], kept=kept[at]))
            for at, client in enumerate(clients)
        ]
        return [measure(model, shards[at].test).loss for at, model in enumerate(models)], received[2]

    first, again = run(), run()

    assert first[0] == again[0]
    assert all(np.isfinite(first[0]))
    assert first[1].keys() == again[1].keys()
    assert all(np.array_equal(first[1][key], again[1][key]) for key in first[1])


@pytest.mark.parametrize("name", NAMES)
def test_who_joins_late_starts_from_what_a_method_gives_newcomers(name: str) -> None:
    method = make_method(name, {})
    received = method.start(TINY, initial(), 1)
    update = method.train(local(received=received))
    given = method.aggregate(gathered(sent(0, update.sent, received=received), labels=(0,)))

    model = method.personal_model(local(received=given.newcomers, client=9))

    assert measure(model, data([0, 1, 2])).samples == 3


@pytest.mark.parametrize("name", NAMES)
def test_training_begins_with_what_it_says_or_with_the_model_that_was_measured(name: str) -> None:
    method = make_method(name, {})
    start = method.start(TINY, initial(), 1)
    first = method.train(local(received=start))
    given = method.aggregate(gathered(sent(0, first.sent, received=start), labels=(0,)))
    still = TrainingConfig(epochs=1, learning_rate=1e-12) if name != "fedrep" else TrainingConfig(learning_rate=1e-12)
    client = local(round=2, received=given.received[0], kept=first.kept, config=still)

    measured, update = method.personal_model(client), method.train(client)

    before, after = (update.start or measured).state_dict(), update.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[key], after[key], atol=1e-6) for key in before)
    if name != "prior-rows":  # which keeps the number of the round as well
        assert is_close(update.kept, first.kept)


# FedAvg, FedProx


def test_fedavg_gives_the_mean_of_what_was_sent() -> None:
    given = FedAvg().aggregate(gathered(sent(0, shifted(initial(), 1.0)), sent(1, shifted(initial(), 3.0))))

    assert is_close(given.received[0], shifted(initial(), 2.0))
    assert given.received[0] is given.received[1] is given.newcomers


def test_fedprox_without_mu_is_fedavg_and_with_a_large_mu_stays_where_it_was() -> None:
    client = local()
    free = make_method("fedprox", {"mu": 0.0}).train(client)
    held = make_method("fedprox", {"mu": 1000.0}).train(client)

    assert is_close(free.sent, FedAvg().train(client).sent)
    assert change(held.sent, client.received) < change(free.sent, client.received) / 2


# Clusters


def test_paa_averages_within_clusters_and_gives_newcomers_the_largest() -> None:
    models = [shifted(initial(), by) for by in (0.0, 2.0, 10.0)]

    given = make_method("paa", {"clusters": 2}).aggregate(
        gathered(*(sent(at, model) for at, model in enumerate(models)), labels=(0, 0, 1))
    )

    assert given.labels == (0, 0, 1)
    assert is_close(given.received[0], shifted(initial(), 1.0))
    assert given.received[0] is given.received[1] is given.newcomers
    assert is_close(given.received[2], shifted(initial(), 10.0))


def test_paa_compares_models_by_their_prototypes_and_label_clusters_by_histograms() -> None:
    matrices = []

    def note(matrix: np.ndarray, clusters: int) -> Sequence[int]:
        matrices.append((matrix.tolist(), clusters))
        return (0, 1)

    everybody = (sent(0, initial(), histogram=(4, 0, 0)), sent(1, initial(), histogram=(0, 0, 4)))
    for name in ("paa", "label-clusters"):
        make_method(name, {"clusters": 7}).aggregate(replace(gathered(*everybody), cluster=note))

    assert matrices == [([[10000, 10000], [10000, 10000]], 2), ([[10000, -5000], [-5000, 10000]], 2)]


@pytest.mark.parametrize(
    ("name", "settings", "decision"),
    [("paa", {}, 3.0), ("prior-rows", {"shared": 0.0, "server_step": 1.0, "similarity": "prototypes"}, 2.0)],
)
def test_similarities_that_a_ledger_has_are_taken(name: str, settings: dict[str, object], decision: float) -> None:
    matrix = np.full((2, 2), 77, dtype=np.int16)
    seen: list[object] = []
    everybody = gathered(sent(0, shifted(initial(), 1.0)), sent(1, shifted(initial(), 3.0)))

    def noted(found: object, _: int) -> tuple[int, int]:
        seen.append(found)
        return (0, 1)

    given = make_method(name, settings).aggregate(replace(everybody, matrix=matrix, cluster=noted))

    assert given.labels == (0, 1)
    assert seen == [matrix]
    for part, step in (("representation", 3.0), ("decision", decision)):
        assert is_close(named(part, given.received[1]), named(part, shifted(initial(), step)))


def test_random_clusters_stay_and_have_nearly_equal_sizes() -> None:
    method = make_method("random-clusters", {"clusters": 2})
    everybody = gathered(*(sent(at, initial()) for at in range(5)))

    labels = method.aggregate(everybody).labels

    assert labels == method.aggregate(replace(everybody, round=2)).labels
    assert sorted(np.bincount(labels or ()).tolist()) == [2, 3]


@pytest.mark.parametrize(
    ("present", "labels"),
    [
        ((0, 1, 2, 3, 4, 5), (0, 0, 0, 1, 1, 1)),
        ((0, 1, 2, 3), (0, 0, 0, 1)),
        ((1, 2, 4, 5), (0, 0, 1, 1)),
        ((0, 3, 4), (0, 1, 1)),
        ((3, 4, 5), (0, 0, 0)),
    ],
)
def test_two_clients_are_in_one_random_cluster_always_or_never(
    present: tuple[int, ...], labels: tuple[int, ...]
) -> None:
    """0.64, 0.89, 0.08, 0.895, 0.883, 0.38 are drawn: by hand 2, 5, 0, 4, 1, 3 are dealt to {2, 0, 1}, {5, 4, 3}."""
    method = make_method("random-clusters", {"clusters": 2})

    given = method.aggregate(gathered(*(sent(client, initial()) for client in present), clients=6))

    assert given.labels == labels


def test_ifca_trains_the_model_that_fits_best_and_leaves_the_others() -> None:
    method = make_method("ifca", {"clusters": 2})
    start = dict(method.start(TINY, initial(), 1))
    start["model1.decision.bias"] = np.array([0.0, 0.0, 50.0], dtype=np.float32)
    client = local(labels=[2, 2, 2], received=start)

    update = method.train(client)
    given = method.aggregate(gathered(sent(0, update.sent, received=start)))

    assert {name.split(".")[0] for name in update.sent} == {"model1"}
    assert given.labels == (1,)
    assert np.array_equal(given.received[0]["model0.decision.bias"], start["model0.decision.bias"])
    assert np.array_equal(given.received[0]["model1.decision.bias"], update.sent["model1.decision.bias"])


def test_ifca_chooses_by_the_training_data_alone() -> None:
    method = make_method("ifca", {"clusters": 2})
    start = dict(method.start(TINY, initial(), 1))
    start["model1.decision.bias"] = np.array([0.0, 0.0, 50.0], dtype=np.float32)
    client = local(received=start, shard=Shard(data([2, 2]), data([0, 0])))

    assert {name.split(".")[0] for name in method.train(client).sent} == {"model1"}


# Personal parts


@pytest.mark.parametrize("name", ["fedper", "fedrep"])
def test_the_decision_layer_is_never_sent_and_comes_back_in_the_next_round(name: str) -> None:
    method = make_method(name, {})
    update = method.train(local())

    assert {key.split(".")[0] for key in update.sent} == {"representation"}
    assert {key.split(".")[0] for key in update.kept} == {"decision"}
    again = method.personal_model(local(kept=update.kept))
    assert np.array_equal(get_tensors(again)["decision.weight"], update.kept["decision.weight"])


@pytest.mark.parametrize("name", ["fedper", "fedrep"])
def test_shared_layers_are_averaged_and_the_decision_layer_stays_as_it_began_for_newcomers(name: str) -> None:
    shared = [
        {key: tensor for key, tensor in shifted(initial(), by).items() if key.startswith("representation.")}
        for by in (1.0, 3.0)
    ]

    given = make_method(name, {}).aggregate(gathered(*(sent(at, own) for at, own in enumerate(shared))))

    averaged = shifted(initial(), 2.0)
    assert is_close(
        given.newcomers,
        {key: averaged[key] if key.startswith("representation.") else tensor for key, tensor in initial().items()},
    )


def test_fedrep_trains_the_decision_layer_first_and_the_representation_alone_afterwards() -> None:
    client = local(config=TrainingConfig(epochs=3, batch_size=3, learning_rate=0.01))
    by_hand = client.classifier()
    fit(by_hand, client.shard.train, replace(client.config, epochs=2), parameters=by_hand.decision.parameters())
    head = {name: tensor for name, tensor in get_tensors(by_hand).items() if name.startswith("decision.")}
    rest = replace(client.config, epochs=1, seed=client.config.seed + 1)
    fit(by_hand, client.shard.train, rest, parameters=by_hand.representation.parameters())

    update = make_method("fedrep", {"head_epochs": 2}).train(client)

    assert is_close(update.kept, head)
    assert is_close({**update.sent, **update.kept}, get_tensors(by_hand))
    with pytest.raises(MethodError, match="leave at least one"):
        make_method("fedrep", {"head_epochs": 3}).check_training(client.config)


def test_fedbn_keeps_normalisations_and_without_any_is_fedavg() -> None:
    method = make_method("fedbn", {})
    received = initial(RESNET)

    personal = set(method._personal(received))  # type: ignore[attr-defined]  # the rule itself: training takes minutes

    assert {name for name in received if ".bn" in name or "downsample.1" in name} == personal
    assert is_close(method.train(local()).sent, FedAvg().train(local()).sent)


def test_fedrod_predicts_generally_without_its_personal_head() -> None:
    method = make_method("fedrod", {})
    client = local(labels=[1, 1, 1, 1])
    update = method.train(client)
    after = replace(client, kept=update.kept, received=update.sent)

    assert set(update.sent) == set(initial())
    assert set(update.kept) == {"personal.weight", "personal.bias"}
    # Balanced softmax masks classes that are absent: with one class its loss is 0, and the generic part stays.
    assert is_close(update.sent, client.received)
    assert (
        measure(method.personal_model(after), client.shard.test).loss
        < measure(method.general_model(after), client.shard.test).loss
    )


def test_fedrod_predicts_all_classes_alike_with_its_generic_head() -> None:
    method = make_method("fedrod", {"expects": "uniform"})
    client = local()
    update = method.train(client)
    later = replace(client, kept=update.kept, received=update.sent)

    assert is_close(update.sent, make_method("fedrod", {}).train(client).sent)
    assert is_close(get_tensors(update.model), update.sent)
    assert is_close(get_tensors(method.personal_model(later)), later.received)


@pytest.mark.parametrize(("step", "by"), [(1.0, 2.0), (1.5, 3.0)])
def test_fedrod_goes_a_step_towards_the_mean_and_1_is_the_mean(step: float, by: float) -> None:
    everybody = gathered(sent(0, shifted(initial(), 1.0)), sent(1, shifted(initial(), 3.0)))

    given = make_method("fedrod", {"server_step": step}).aggregate(everybody)

    assert is_close(given.newcomers, shifted(initial(), by))


def test_ditto_sends_what_fedavg_sends_and_holds_its_own_model_near_what_it_received() -> None:
    client = local()
    loose = make_method("ditto", {"strength": 0.0}).train(client)
    tight = make_method("ditto", {"strength": 1000.0}).train(client)

    assert is_close(loose.sent, FedAvg().train(client).sent)
    own = {name.removeprefix("own."): tensor for name, tensor in loose.kept.items()}
    assert is_close(own, loose.sent)
    held = {name.removeprefix("own."): tensor for name, tensor in tight.kept.items()}
    assert change(held, client.received) < change(own, client.received) / 2


def test_apfl_mixes_weights_and_lets_the_mixture_move_the_own_ones_alone() -> None:
    client = local()
    other = shifted(initial(), 1.0)
    mixture = Mixture(client.classifier(other), client.classifier(), 0.25)
    inputs = torch.rand(2, 1, 1, 2)

    expected = client.classifier(shifted(initial(), 0.25))(inputs)
    assert torch.allclose(mixture(inputs), expected, atol=1e-6)

    mixture(inputs).sum().backward()
    assert all(parameter.grad is None for parameter in mixture.shared.parameters())
    assert any(parameter.grad is not None for parameter in mixture.own.parameters())
    update = make_method("apfl", {"alpha": 0.5}).train(client)
    assert is_close(update.sent, FedAvg().train(client).sent)


# Knowledge of classes


def test_fedproto_sends_class_means_and_averages_them_over_who_has_the_class() -> None:
    method = make_method("fedproto", {})
    update = method.train(local(labels=[0, 0, 1]))

    assert set(update.sent) == {PROTOTYPES, COUNTS}
    assert update.sent[COUNTS].tolist() == [2, 1, 0]
    length = TINY.code_length
    one = {PROTOTYPES: np.full((3, length), 1.0, np.float32), COUNTS: np.array([1, 0, 0])}
    two = {PROTOTYPES: np.full((3, length), 4.0, np.float32), COUNTS: np.array([2, 3, 0])}
    given = method.aggregate(gathered(sent(0, one), sent(1, two))).newcomers
    assert given[PROTOTYPES][:, 0].tolist() == [3.0, 4.0, 0.0]
    assert given[COUNTS].tolist() == [3, 3, 0]


def test_a_class_that_nobody_reports_keeps_what_was_known_of_it() -> None:
    known = {PROTOTYPES: np.full((3, TINY.code_length), 7.0, np.float32), COUNTS: np.array([2, 2, 9])}
    own = {PROTOTYPES: np.full((3, TINY.code_length), 1.0, np.float32), COUNTS: np.array([4, 0, 0])}

    given = make_method("fedproto", {}).aggregate(gathered(sent(0, own, received={**initial(), **known}))).newcomers

    assert given[PROTOTYPES][:, 0].tolist() == [1.0, 7.0, 7.0]
    assert given[COUNTS].tolist() == [4, 2, 9]


@pytest.mark.parametrize(("name", "averages"), [("fedproto", False), ("fedproto", True), ("fedhkd", True)])
def test_models_are_averaged_where_they_are_sent(name: str, averages: bool) -> None:
    method = make_method(name, {"average_models": averages} if name == "fedproto" else {})
    sends = [dict(method.train(local()).sent) for _ in range(2)]
    for own, by in zip(sends, (1.0, 3.0), strict=True):
        own.update(shifted(initial(), by) if averages else {})

    given = method.aggregate(gathered(*(sent(at, own) for at, own in enumerate(sends)))).newcomers

    assert (set(initial()) <= set(sends[0])) == averages
    assert is_close({key: given[key] for key in initial()}, shifted(initial(), 2.0) if averages else initial())


def test_fedproto_draws_codes_towards_the_prototypes_of_their_class() -> None:
    target = {PROTOTYPES: np.zeros((3, TINY.code_length), np.float32), COUNTS: np.array([5, 5, 0])}
    client = local(received={**initial(), **target}, config=TrainingConfig(epochs=40, batch_size=6, learning_rate=0.01))

    drawn = make_method("fedproto", {"weight": 100.0}).train(client)
    free = make_method("fedproto", {"weight": 0.0}).train(client)

    assert np.abs(drawn.sent[PROTOTYPES][:2]).sum() < np.abs(free.sent[PROTOTYPES][:2]).sum() / 4


def test_fedhkd_sends_its_model_with_soft_predictions_of_classes_it_has_enough_of() -> None:
    update = make_method("fedhkd", {"least_share": 0.3}).train(local(labels=[0, 1, 1, 1, 1, 1]))

    assert set(initial()) < set(update.sent)
    assert update.sent[COUNTS].tolist() == [0, 5, 0]
    assert update.sent["knowledge.soft_predictions"][1].sum() == pytest.approx(1.0)


# Controls


def test_local_only_goes_on_from_the_own_model_and_sends_nothing() -> None:
    method = make_method("local", {})
    first = method.train(local())
    second = method.train(local(kept=first.kept))

    assert first.sent == second.sent == {}
    assert change(second.kept, first.kept) > 0
    assert is_close(method.aggregate(gathered(sent(0, {}))).newcomers, initial())


def test_all_data_in_one_place_goes_on_from_its_own_model() -> None:
    model = shifted(initial(), 1.0)

    assert is_close(make_method("centralised", {}).aggregate(gathered(sent(0, model))).received[0], model)


# The registry


@pytest.mark.parametrize(
    ("name", "settings", "fault"),
    [
        ("best", {}, "there is no method 'best'"),
        ("fedprox", {"my": 1.0}, "has no setting 'my': it has interpolation, mu"),
        ("fedavg", {"mu": 1.0}, "has no setting 'mu': it has interpolation"),
        ("fedavg", {"interpolation": 1.5}, "give 0 to 1"),
        ("paa", {"clusters": 2.5}, "give a whole number"),
        ("paa", {"clusters": 0}, "at least 1"),
        ("random-clusters", {"clusters": 0}, "at least 1"),
        ("random-clusters", {"seed": -1}, "seed is -1: give 0 or more"),
        ("apfl", {"alpha": 2.0}, "give 0 to 1"),
        ("fedrod", {"server_step": inf}, "setting server_step of method fedrod is inf: give a finite number"),
        ("prior-rows", {"momentum": inf}, "setting momentum of method prior-rows is inf: give a finite number"),
        ("fedprox", {"mu": nan}, "setting mu of method fedprox is nan: give a finite number"),
        ("fedprox", {"mu": 10**400}, "setting mu of method fedprox is 10000.*: give a finite number"),
        ("fedavg", {"interpolation": -inf}, "setting interpolation of method fedavg is -inf: give a finite number"),
        ("prior-rows", {"server_step": 0.0}, "more than 0"),
        ("prior-rows", {"momentum": 1.1}, "momentum is 1.1: give 0 to 1"),
        ("prior-rows", {"memory": -0.1}, "memory is -0.1: give 0 to 1"),
        ("prior-rows", {"shared": 1.5}, "0 to 1"),
        ("prior-rows", {"expects": "rain"}, "own, uniform"),
        ("fedrod", {"expects": "rain"}, "own, uniform"),
        ("prior-rows", {"similarity": "taste"}, "prototypes, updates"),
    ],
)
def test_a_wrong_name_or_setting_is_refused(name: str, settings: dict[str, object], fault: str) -> None:
    with pytest.raises(MethodError, match=fault):
        make_method(name, settings)


def test_an_installed_package_adds_a_method_by_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("mine", f"{__name__}:Mine", registry.ENTRY_POINTS)
    monkeypatch.setattr(EntryPoint, "load", lambda self: Mine)
    monkeypatch.setattr(registry, "entry_points", lambda group: EntryPoints([entry]))

    assert isinstance(make_method("mine", {}), Mine)
    with pytest.raises(MethodError, match=r"no method 'theirs': use one of apfl, .*, local, mine, paa"):
        make_method("theirs", {})


def test_a_broken_package_stops_its_own_method_only(monkeypatch: pytest.MonkeyPatch) -> None:
    offered = [EntryPoint(name, "theirs:Theirs", registry.ENTRY_POINTS) for name in ("broken", "fedper")]
    monkeypatch.setattr(registry, "entry_points", lambda group: EntryPoints(offered))

    assert isinstance(make_method("fedavg", {}), FedAvg)
    with pytest.raises(
        MethodError, match=r"broken \(theirs:Theirs\) can't be loaded \(ModuleNotFoundError: .*uninstall it"
    ):
        make_method("broken", {})
    with pytest.raises(MethodError, match=r"fedper \(theirs:Theirs\): there is a method of that name already"):
        make_method("fedper", {})
    monkeypatch.setattr(EntryPoint, "load", lambda self: 3)
    with pytest.raises(
        MethodError, match=r"broken \(theirs:Theirs\) is no subclass of bflnode.fl.methods.method.Method"
    ):
        make_method("broken", {})


def test_what_a_method_of_another_package_raises_when_it_is_made_is_named_as_its(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(EntryPoint, "load", lambda self: Moody)
    monkeypatch.setattr(
        registry, "entry_points", lambda group: EntryPoints([EntryPoint("moody", "theirs:Moody", group)])
    )

    with pytest.raises(
        MethodError, match=rf"moody of {__name__} failed \(ValueError: not today\): correct its package"
    ):
        make_method("moody", {})


@dataclass(frozen=True, kw_only=True)
class Moody(Method):
    name = "moody"
    source = "a test"

    def __post_init__(self) -> None:
        raise ValueError("not today")


class Mine(Method):
    """A user's method: it takes the defaults."""

    name = "mine"
    source = "nobody"


def test_every_method_names_its_source() -> None:
    assert all(method.source and issubclass(method, Method) for method in methods().values())
    assert isinstance(FedAvg().personal_model(local()), nn.Module)
