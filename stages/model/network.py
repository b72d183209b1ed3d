"""The network: change it here, and nowhere else."""

import keras
from keras import layers


def build(image_shape: tuple[int, int, int], classes: int, momentum: float = 0.99) -> keras.Model:
    """Return the tutorial's network: pixels 0..255 (N, *image_shape) to probabilities (N, classes).

    520,266 parameters for 28x28x1 images and ten classes. `momentum` is how much of its moving
    statistics a batch normalisation keeps at each step. The last layer must give probabilities.
    """
    # Every layer has a name: automatic names depend on what the process built before.
    image = keras.Input(image_shape, name="image")
    x = layers.Conv2D(32, 3, padding="same", activation="relu", name="conv1")(image)
    x = layers.MaxPooling2D(2, name="pool1")(x)
    x = layers.BatchNormalization(momentum=momentum, name="norm1")(x)
    x = layers.Conv2D(64, 3, padding="same", activation="relu", name="conv2")(x)
    x = layers.MaxPooling2D(2, name="pool2")(x)
    x = layers.BatchNormalization(momentum=momentum, name="norm2")(x)
    x = layers.Conv2D(128, 3, padding="same", activation="relu", name="conv3")(x)
    x = layers.Flatten(name="flatten")(x)
    x = layers.BatchNormalization(momentum=momentum, name="norm3")(x)
    x = layers.Dense(64, name="dense")(x)
    # Probabilities in float32, whatever `train.precision` is: rounded, their loss would be coarse.
    digit = layers.Dense(classes, activation="softmax", dtype="float32", name="digit")(x)
    return keras.Model(image, digit, name="digits")
