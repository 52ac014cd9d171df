from hashlib import sha256

import numpy as np
import pytest
import torch
from torchvision.models import resnet18

from bflnode.fl import networks
from bflnode.fl.architectures import MAX_SIDE, UnknownArchitecture, architecture
from bflnode.fl.weights import InvalidWeights, expected_size, parse, table_of

IDS = (
    "mlp/1x8x8/10",
    "mlp/3x32x32/10",
    "cnn/1x28x28/10",
    "cnn/3x32x32/100",
    "cnn/1x4x5/2",
    "resnet18/3x32x32/10",
    "resnet18/1x28x28/100",
)


@pytest.mark.parametrize("architecture_id", IDS)
def test_table_equals_the_state_of_the_torch_module(architecture_id: str) -> None:
    described = architecture(architecture_id)
    state = described.build().state_dict()
    assert described.table == table_of({name: tensor.numpy() for name, tensor in state.items()})


@pytest.mark.parametrize("architecture_id", IDS)
def test_initial_weights_load_and_dump_to_the_same_bytes(architecture_id: str) -> None:
    described = architecture(architecture_id)
    model = described.initial_weights(3)
    assert len(model) == described.size_bytes == expected_size(described.table)
    assert described.dump(described.load(model)) == model


@pytest.mark.parametrize("architecture_id", IDS)
def test_representation_gives_codes_and_decision_gives_logits(architecture_id: str) -> None:
    described = architecture(architecture_id)
    classifier = described.load(described.initial_weights(0)).eval()
    inputs = torch.rand(2, *described.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        codes = classifier.representation(inputs)
        logits = classifier(inputs)
        decided = classifier.decision(codes)
    assert codes.shape == (2, described.code_length)
    assert logits.shape == (2, described.classes)
    assert torch.equal(logits, decided)


def test_sizes_are_those_of_the_design() -> None:
    assert architecture("mlp/1x8x8/10").table.elements == 64 * 64 + 64 + 64 * 10 + 10
    assert architecture("cnn/1x28x28/10").table.elements == 28_874
    assert architecture("resnet18/3x32x32/10").code_length == 32
    assert architecture("resnet18/3x32x32/100").code_length == 50


def test_initial_weights_of_a_seed_are_the_same_everywhere() -> None:
    assert {
        name: sha256(architecture(name).initial_weights(0)).hexdigest()[:16]
        for name in ("mlp/1x8x8/10", "cnn/1x28x28/10", "resnet18/3x32x32/10")
    } == {
        "mlp/1x8x8/10": "2f4245e8495af1e6",
        "cnn/1x28x28/10": "360b9b4f64547629",
        "resnet18/3x32x32/10": "edad78922f6e4687",
    }


def test_seeds_give_different_weights_and_leave_global_generators_alone() -> None:
    torch_before, numpy_before = torch.random.get_rng_state(), np.random.get_state()[1]
    described = architecture("cnn/1x28x28/10")
    assert described.initial_weights(0) != described.initial_weights(1)
    described.load(described.initial_weights(0))
    described.build()
    assert torch.equal(torch.random.get_rng_state(), torch_before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)


@pytest.mark.parametrize("architecture_id", ["cnn/1x28x28/10", "resnet18/3x32x32/10"])
def test_initial_weights_have_the_spread_torch_gives_them(architecture_id: str) -> None:
    described = architecture(architecture_id)
    ours = parse(described.initial_weights(0), described.table)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = _initialised_by_torch(architecture_id).state_dict()
    for name, tensor in ours.items():
        reference = theirs[name].numpy()
        if tensor.size >= 500:
            assert tensor.std() == pytest.approx(reference.std(), rel=0.1), name
        elif reference.std() == 0.0:
            np.testing.assert_array_equal(tensor, reference, err_msg=name)


def _initialised_by_torch(architecture_id: str) -> torch.nn.Module:
    """The module with the values that torch's and torchvision's own constructors give it."""
    described = architecture(architecture_id)
    decision = torch.nn.Linear(described.code_length, described.classes)
    if described.name == "cnn":
        body: torch.nn.Module = networks.CnnRepresentation(described.input_shape, described.code_length)
    else:
        body = resnet18(num_classes=described.code_length)
    return networks.Classifier(body, decision)


def test_weights_of_another_architecture_are_refused() -> None:
    digits, fashion = architecture("mlp/1x8x8/10"), architecture("cnn/1x28x28/10")
    with pytest.raises(InvalidWeights):
        fashion.load(digits.initial_weights(0))


def test_a_model_with_a_nan_is_not_dumped() -> None:
    described = architecture("mlp/1x8x8/10")
    classifier = described.load(described.initial_weights(0))
    with torch.no_grad():
        classifier.decision.bias[3] = float("nan")
    with pytest.raises(InvalidWeights, match=r"decision\.bias"):
        described.dump(classifier)


@pytest.mark.parametrize(
    ("architecture_id", "message"),
    [
        ("", "is not an architecture id: write <name>/<channels>x<height>x<width>/<classes>"),
        ("mlp", "is not an architecture id"),
        ("mlp/1x8x8", "is not an architecture id"),
        ("mlp/1x8x8/10/", "is not an architecture id"),
        ("mlp/1x8x8/10\n", "is not an architecture id"),
        ("mlp/01x8x8/10", "is not an architecture id"),
        ("mlp/0x8x8/10", "is not an architecture id"),
        ("mlp/1x8x-8/10", "is not an architecture id"),
        ("mlp/1x8x٨/10", "is not an architecture id"),
        ("MLP/1x8x8/10", "is not an architecture id"),
        ("../mlp/1x8x8/10", "is not an architecture id"),
        ("vit/3x32x32/10", "there is no architecture 'vit'; names are mlp, cnn, resnet18"),
        ("mlp/17x8x8/10", "17 channels, at most 16"),
        (f"mlp/1x{MAX_SIDE + 1}x8/10", "images of 257x8 pixels, at most 256x256"),
        ("cnn/1x3x28/10", "cnn needs 4x4"),
        ("mlp/1x8x8/1", "1 classes, between 2 and 1000"),
        ("mlp/1x8x8/1001", "1001 classes"),
    ],
)
def test_unknown_or_malformed_id_is_refused_with_the_cause(architecture_id: str, message: str) -> None:
    with pytest.raises(UnknownArchitecture) as raised:
        architecture(architecture_id)
    assert message in str(raised.value)
