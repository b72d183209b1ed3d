"""The network is the tutorial's."""

import keras
import pytest

from stages.model import network

SHAPE = (28, 28, 1)


@pytest.fixture
def model() -> keras.Model:
    return network.build(SHAPE, 10, momentum=0.9)


def test_layers_are_the_tutorials(model: keras.Model) -> None:
    assert model.count_params() == 520_266
    assert [(layer.name, layer.output.shape[1:]) for layer in model.layers] == [
        ("image", (28, 28, 1)),
        ("conv1", (28, 28, 32)),
        ("pool1", (14, 14, 32)),
        ("norm1", (14, 14, 32)),
        ("conv2", (14, 14, 64)),
        ("pool2", (7, 7, 64)),
        ("norm2", (7, 7, 64)),
        ("conv3", (7, 7, 128)),
        ("flatten", (6272,)),
        ("norm3", (6272,)),
        ("dense", (64,)),
        ("digit", (10,)),
    ]
    activations = {
        layer.name: layer.activation.__name__
        for layer in model.layers
        if hasattr(layer, "activation")
    }
    assert activations == {
        "conv1": "relu", "conv2": "relu", "conv3": "relu", "dense": "linear", "digit": "softmax",
    }  # fmt: skip


def test_names_do_not_depend_on_what_was_built_before() -> None:
    first, second = (network.build((12, 12, 1), 3) for _ in range(2))
    assert [v.path for v in first.variables] == [v.path for v in second.variables]
    assert first.get_config() | {"layers": None} == second.get_config() | {"layers": None}


def test_every_batch_normalisation_has_the_momentum_asked_for(model: keras.Model) -> None:
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert [norm.momentum for norm in norms] == [0.9] * 3
    default = network.build(SHAPE, 10)
    assert [default.get_layer(norm.name).momentum for norm in norms] == [0.99] * 3
