import numpy as np
import pytest

from bflnode.fl.attacks import Attack, AttackError
from bflnode.fl.samples import LabelledData, Shard, numbered_classes
from bflnode.fl.weights import Tensor


def model(*values: float) -> dict[str, Tensor]:
    return {"w": np.array(values, dtype=np.float32)}


def forged(name: str, **settings: float) -> list[float]:
    attack = Attack(name=name, **settings)
    others = [model(7.0, 7.0), model(8.0, 8.0), model(9.0, 9.0)]
    values: list[float] = attack.forged(model(2.0, 4.0), model(1.0, 1.0), others, seed=1)["w"].tolist()
    return values


def test_the_last_clients_are_the_hostile_ones() -> None:
    assert Attack(name="lazy", share=0.3).hostile(10) == {7, 8, 9}


def test_a_flipped_sign_goes_the_opposite_way() -> None:
    assert forged("sign-flip") == [0.0, -2.0]
    assert forged("sign-flip", strength=2.0) == [-1.0, -5.0]


def test_a_replacement_moves_the_mean_to_the_attackers_model() -> None:
    received, wanted = model(1.0, 1.0), model(2.0, 4.0)
    honest = [received] * 3  # who doesn't move

    sent = Attack(name="model-replacement").forged(wanted, received, honest, seed=1)

    assert np.mean([sent["w"], *(other["w"] for other in honest)], axis=0).tolist() == [2.0, 4.0]


def test_several_attackers_share_a_replacement_out() -> None:
    received, honest = model(1.0, 1.0), [model(1.0, 1.0)] * 3
    attack = Attack(name="model-replacement")

    sent = [attack.forged(model(*wanted), received, honest, seed=1, hostile=2)["w"] for wanted in ((2, 4), (4, 0))]

    assert np.mean([*sent, *(other["w"] for other in honest)], axis=0).tolist() == [3.0, 2.0]


def test_a_lazy_client_sends_what_it_received_and_a_copier_what_another_sent() -> None:
    assert forged("lazy") == [1.0, 1.0]
    assert forged("copy") in ([7.0, 7.0], [8.0, 8.0], [9.0, 9.0])


def test_noise_is_drawn_by_the_seed() -> None:
    attack = Attack(name="noise", strength=0.5)
    first, again, other = (attack.forged(model(2.0, 4.0), model(0.0), (), seed)["w"] for seed in (1, 1, 2))

    assert first.tolist() == again.tolist() != other.tolist()
    assert attack.forged({"n": np.array(3)}, {}, (), 1)["n"].tolist() == 3


def test_noise_is_in_units_of_the_standard_deviation_of_a_tensor() -> None:
    values = np.array([-2.0, 2.0], dtype=np.float32)

    def noise(strength: float, scale: float) -> list[float]:
        sent: dict[str, Tensor] = {"w": values * np.float32(scale)}
        forged = Attack(name="noise", strength=strength).forged(sent, sent, (), seed=1)
        change: list[float] = (forged["w"] - sent["w"]).tolist()
        return change

    drawn = np.random.default_rng(1).standard_normal(2)
    assert noise(0.5, scale=1.0) == pytest.approx(0.5 * 2.0 * drawn, rel=1e-5)
    assert noise(1.0, scale=3.0) == pytest.approx(1.0 * 6.0 * drawn, rel=1e-5)


@pytest.mark.parametrize("name", ["label-flip", "model-replacement"])
def test_labels_are_flipped_in_the_training_data_alone(name: str) -> None:
    data = LabelledData(np.zeros((3, 1, 1, 1), dtype=np.float32), np.array([0, 1, 2]), numbered_classes(3))

    poisoned = Attack(name=name).poisoned(Shard(data, data))

    assert poisoned.train.labels.tolist() == [2, 1, 0]
    assert poisoned.test.labels.tolist() == [0, 1, 2]
    assert forged("label-flip") == [2.0, 4.0]
    assert Attack(name="noise").poisoned(Shard(data, data)).train is data


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"name": "magic"}, "no attack 'magic'"),
        ({"name": "lazy", "share": 1.5}, "share"),
        ({"name": "noise", "strength": 0.0}, "strength"),
    ],
)
def test_a_wrong_setting_is_refused(settings: dict[str, object], fault: str) -> None:
    with pytest.raises(AttackError, match=fault):
        Attack(**settings)  # type: ignore[arg-type]  # what a configuration may say
