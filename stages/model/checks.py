"""The network as it was written: is it one that trains, is saved, and evaluates?"""

import os
import tempfile
from pathlib import Path

import keras
import numpy as np

from stages.common.errors import StageError
from stages.model import model_file, network

NETWORK = "stages/model/network.py"


def build(image_shape: tuple[int, int, int], classes: int, momentum: float) -> keras.Model:
    """Build the network and check it; raise StageError that says what to write instead.

    To be called in the scope of the strategy that trains it, under the policy that it has.
    """
    try:
        model = network.build(image_shape, classes, momentum)
    except NotADirectoryError as error:
        if not str(error.filename).startswith(os.devnull):  # KERAS_HOME, so that no download works
            raise
        raise StageError(
            f"{NETWORK}: would download weights, and no commit would say which; put them into a "
            "file that dvc.yaml names, as CONTRIBUTING.md says under 'Add a layer'"
        ) from None
    except ValueError as error:
        if "negative" not in str(error):  # Keras' word for a layer that leaves no pixel
            raise
        raise StageError(
            f"{NETWORK}: the network pools images of {image_shape[0]}x{image_shape[1]} pixels down "
            "to nothing; take out a pooling layer, or use larger images"
        ) from None
    # A class of the user's own could compute what neither the file nor `fused` knows.
    if type(model).__module__.partition(".")[0] != "keras":
        raise StageError(
            f"{NETWORK}: build must return keras.Model(inputs, outputs) or keras.Sequential, but "
            f"returns {type(model).__name__}; put code of your own into a layer"
        )
    if not model.built:  # a Sequential without an Input
        model.build((None, *image_shape))
    found = " and ".join(str(tuple(x.shape)) for x in (*model.inputs, *model.outputs))
    wanted = f"{(None, *image_shape)} and {(None, classes)}"
    if found != wanted:
        raise StageError(
            f"{NETWORK}: the network takes and gives {found}; it must take and give {wanted}: "
            "images from keras.Input(image_shape), with no batch size, and a probability for each "
            "class"
        )
    check_outputs(model, image_shape)
    return model


def check_outputs(model: keras.Model, image_shape: tuple[int, int, int]) -> None:
    """Raise StageError unless it gives probabilities, and the same once it is saved and loaded."""
    # From bright to dark: probabilities of 0 and 1 alone would hide a difference.
    noise = np.random.default_rng(0).integers(0, 256, (8, *image_shape), np.uint8)
    noise >>= np.arange(8, dtype=np.uint8)[:, None, None, None]
    outputs = model(noise, training=False).numpy()
    if outputs.dtype != np.float32:
        raise StageError(
            f'{NETWORK}: the last layer gives {outputs.dtype}; give it dtype="float32"'
        )
    if outputs.min() < 0 or not np.allclose(outputs.sum(axis=1), 1, atol=1e-3):
        raise StageError(
            f"{NETWORK}: the last layer gives {outputs.min():.3g} to {outputs.max():.3g}, which "
            'are no probabilities; give it activation="softmax"'
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        try:
            model.save(path)
            loaded = keras.models.load_model(path, compile=False, safe_mode=True)
        except Exception as error:
            raise StageError(
                f"{NETWORK}: the trained network could not be loaded again: "
                f"{model_file.cause(error)}; in place of a Lambda layer write what it computes, "
                "such as `x = x / 255`; decorate your own classes and functions with "
                "@keras.saving.register_keras_serializable()"
            ) from None
    if not np.allclose(loaded(noise, training=False), outputs, atol=1e-5):
        raise StageError(
            f"{NETWORK}: the network gives other probabilities once it is saved and loaded; a "
            "layer of your own must make its weights with add_weight, and give all its settings in "
            "get_config"
        )
