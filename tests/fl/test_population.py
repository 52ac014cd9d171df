"""Who has which part of a data set, and how parts differ."""

from dataclasses import replace
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import numpy as np
import pytest

from bflnode.fl import population as module
from bflnode.fl.attacks import Attack, AttackError
from bflnode.fl.datasets import LoadOptions
from bflnode.fl.population import (
    Population,
    PopulationOptions,
    Shift,
    default_architecture,
    fitting_architecture,
    load_data,
    make_population,
)
from bflnode.fl.samples import DatasetError, LabelledData, Shard, numbered_classes

OPTIONS = PopulationOptions(clients=4, alpha=0.5, seed=1, min_train=2)


def whole(samples: int = 200, side: tuple[int, int] = (2, 2)) -> Shard:
    generator = np.random.default_rng(0)

    def part() -> LabelledData:
        inputs = generator.random((samples, 1, *side), dtype=np.float32)
        return LabelledData(inputs, np.arange(samples, dtype=np.int64) % 4, numbered_classes(4))

    return Shard(part(), part())


def populated(shift: Shift = Shift(), attack: Attack | None = None) -> Population:  # noqa: B008 - frozen
    return make_population(whole(), replace(OPTIONS, shift=shift, attack=attack))


def test_clients_have_every_training_sample_once() -> None:
    made = populated()

    together = made.shard(range(4)).train
    assert len(together) == 200
    assert len({sample.tobytes() for sample in together.inputs}) == 200
    assert sum(np.array(made.histogram(client)) for client in range(4)).tolist() == [50, 50, 50, 50]


def test_each_group_has_its_features_turned_and_labels_stay() -> None:
    plain, turned = populated(), populated(Shift(name="rotation", groups=2))

    assert np.array_equal(turned.shard((0,)).train.inputs, plain.shard((0,)).train.inputs)
    expected = np.rot90(plain.shard((1,)).train.inputs, 1, axes=(2, 3))
    assert np.array_equal(turned.shard((1,)).train.inputs, expected)
    assert np.array_equal(turned.test(3).inputs, np.rot90(plain.test(3).inputs, 1, axes=(2, 3)))
    assert np.array_equal(turned.shard((1,)).train.labels, plain.shard((1,)).train.labels)


def test_styles_are_inverted_faint_and_dark() -> None:
    plain, styled = populated(), populated(Shift(name="style"))
    before = [plain.test(client).inputs for client in range(4)]

    after = [styled.test(client).inputs for client in range(4)]

    assert np.array_equal(after[0], before[0])
    assert np.allclose(after[1], 1 - before[1])
    assert np.allclose(after[2], 0.4 + 0.2 * before[2])
    assert np.allclose(after[3], before[3] ** 2)


def test_what_is_held_out_is_a_mixture_of_all_groups_in_its_order() -> None:
    plain, styled = populated().held.global_test, populated(Shift(name="style", groups=2)).held.global_test

    assert np.array_equal(styled.labels, plain.labels)
    assert np.array_equal(styled.inputs[0::2], plain.inputs[0::2])
    assert np.allclose(styled.inputs[1::2], 1 - plain.inputs[1::2])


def test_with_a_uniform_test_prior_classes_are_equally_frequent_in_tests_and_training_is_the_same() -> None:
    plain, uniform = populated(), populated(Shift(test_prior="uniform"))

    for client in range(4):
        counts = set(uniform.test(client).histogram())
        assert len(counts) == 1
        assert uniform.histogram(client) == plain.histogram(client)


def test_hostile_clients_have_flipped_labels_in_training_only() -> None:
    plain, poisoned = populated(), populated(attack=Attack(name="label-flip", share=0.25))

    assert poisoned.hostile == {3}
    assert np.array_equal(poisoned.shard((3,)).train.labels, 3 - plain.shard((3,)).train.labels)
    assert np.array_equal(poisoned.shard((3,)).test.labels, plain.shard((3,)).test.labels)
    assert np.array_equal(poisoned.shard((0,)).train.labels, plain.shard((0,)).train.labels)


def test_samples_of_clients_are_drawn_by_seed_and_round() -> None:
    made = populated()

    drawn = [made.sampled(number, 2) for number in range(1, 30)]
    assert drawn == [made.sampled(number, 2) for number in range(1, 30)]
    assert {len(set(clients)) for clients in drawn} == {2}
    assert len(set(drawn)) > 3
    assert made.sampled(1, 0) == made.sampled(1, 4) == (0, 1, 2, 3)


def test_more_samples_than_there_are_is_an_error() -> None:
    with pytest.raises(DatasetError, match="201 of 200 samples can't be taken: give 1 to 200"):
        make_population(whole(), replace(OPTIONS, samples=201))


@pytest.mark.parametrize("share", [1.0, 0.9])
def test_a_share_that_leaves_nobody_honest_is_refused(share: float) -> None:
    """Means are over honest clients: without one they were silently over hostile ones."""
    with pytest.raises(AttackError, match=rf"attack.share is {share}, which makes all of 4 clients hostile: lower it"):
        replace(OPTIONS, attack=Attack(name="lazy", share=share))

    assert populated(attack=Attack(name="lazy", share=0.85)).hostile == {1, 2, 3}


def test_images_that_arent_square_cant_be_turned() -> None:
    with pytest.raises(DatasetError, match="images of 2x3 can't be rotated by 90 degrees"):
        make_population(whole(side=(2, 3)), replace(OPTIONS, shift=Shift(name="rotation")))


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"name": "wind"}, "no shift 'wind'"), ({"groups": 5}, "give 1 to 4"), ({"test_prior": "odd"}, "no test prior")],
)
def test_a_wrong_shift_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        Shift(**settings)  # type: ignore[arg-type]  # fields by name


def test_the_model_follows_the_data_and_one_that_doesnt_fit_is_refused() -> None:
    digits = load_data("digits", None)

    assert default_architecture("digits", digits) == "mlp/1x8x8/10"
    assert default_architecture("npz", digits) == "cnn/1x8x8/10"
    with pytest.raises(DatasetError, match="digits has 1x8x8 and 10 classes"):
        fitting_architecture("mlp/1x8x8/9", "digits", digits)


def test_other_packages_offer_data_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("mine", f"{__name__}:offered", "bflnode.datasets")
    monkeypatch.setattr(module, "entry_points", lambda group: EntryPoints([entry] if group == entry.group else []))
    monkeypatch.setattr(EntryPoint, "load", lambda self: offered)

    assert len(load_data("mine", Path("/somewhere")).train) == 40
    with pytest.raises(DatasetError, match=r"no kind of data 'theirs': use one of digits, .*, mine"):
        load_data("theirs", None)


def test_what_another_packages_data_raises_names_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("mine", "theirs.data:load", "bflnode.datasets")
    monkeypatch.setattr(module, "entry_points", lambda group: EntryPoints([entry]))

    with pytest.raises(
        DatasetError, match=r"entry point mine \(theirs.data:load\) can't load data \(ModuleNotFoundErr"
    ):
        load_data("mine", None)
    monkeypatch.setattr(EntryPoint, "load", lambda self: lambda path, options: {}["row"])
    with pytest.raises(
        DatasetError, match=r"can't load data \(KeyError: 'row'\): correct its package; BFLNODE_DEBUG=1"
    ):
        load_data("mine", None)


def offered(path: Path | None, options: LoadOptions) -> Shard:
    assert path == Path("/somewhere")
    assert options.test_share == 0.2
    return whole(40)
