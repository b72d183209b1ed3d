"""The tutorial's recipe as one plain script: what the pipeline is compared with.

    python benchmarks/notebook.py [--figures FOLDER] [--max-images N]

Unseeded, with nothing cached or recorded, like the notebook it stands for. It reads the bundled
archives, trains one epoch with `model.fit` on NumPy arrays of raw pixels, prints the two ratios
and draws the three figures. The last line is JSON for benchmarks/compare.py.
"""

import argparse
import gzip
import json
import time
from pathlib import Path

import keras
import matplotlib
import numpy as np
from keras import layers

matplotlib.use("Agg")
from matplotlib import pyplot as plt

MIRROR = Path(__file__).resolve().parents[1] / "data/mirror/mnist"

parser = argparse.ArgumentParser(description="Train the tutorial's network with its own recipe.")
parser.add_argument("--figures", type=Path, default=Path(), help="folder for the figures")
parser.add_argument("--max-images", type=int, help="train on the first so many images only")
arguments = parser.parse_args()


def read(name: str, header: int) -> np.ndarray:
    """Return the bytes of one bundled archive behind its header, uint8 (n,)."""
    with gzip.open(MIRROR / f"{name}.gz") as file:
        return np.frombuffer(file.read(), np.uint8, offset=header)


def draw(file: str, indices: np.ndarray, predicted: np.ndarray) -> None:
    """Draw ten test images in a 5x2 grid, each titled with predicted and true label."""
    figure, axes = plt.subplots(5, 2, figsize=(6, 12))
    for axis, index in zip(axes.flat, indices, strict=False):
        axis.imshow(test_images[index].squeeze(), cmap="gray")
        axis.set_title(f"predicted {predicted[index]}, true {test_labels[index]}")
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(arguments.figures / file)


train_images = read("train-images-idx3-ubyte", 16).reshape(-1, 28, 28, 1)[: arguments.max_images]
train_labels = read("train-labels-idx1-ubyte", 8)[: arguments.max_images]
test_images = read("t10k-images-idx3-ubyte", 16).reshape(-1, 28, 28, 1)
test_labels = read("t10k-labels-idx1-ubyte", 8)

plt.imsave(arguments.figures / "sample.png", train_images[0].squeeze(), cmap="gray")

model = keras.Sequential(
    [
        keras.Input((28, 28, 1)),
        layers.Conv2D(32, 3, padding="same", activation="relu"),
        layers.MaxPooling2D(2),
        layers.BatchNormalization(),
        layers.Conv2D(64, 3, padding="same", activation="relu"),
        layers.MaxPooling2D(2),
        layers.BatchNormalization(),
        layers.Conv2D(128, 3, padding="same", activation="relu"),
        layers.Flatten(),
        layers.BatchNormalization(),
        layers.Dense(64),
        layers.Dense(10, activation="softmax"),
    ]
)
model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
one_hot = keras.utils.to_categorical(train_labels, 10)
start = time.perf_counter()
model.fit(train_images, one_hot, batch_size=32, epochs=1, verbose=2)
seconds = time.perf_counter() - start

predicted = model.predict(test_images, verbose=0).argmax(axis=1)
wrong = np.flatnonzero(predicted != test_labels)
right = np.flatnonzero(predicted == test_labels)
print("misclassified:", len(wrong) / len(test_labels))
print("correctly classified:", len(right) / len(test_labels))
draw("mismatch.png", np.random.choice(wrong, 10, replace=False), predicted)
draw("match.png", np.random.choice(right, 10, replace=False), predicted)

figures = {"images_per_second": len(train_images) / seconds}
print(json.dumps(figures | {"test_accuracy": len(right) / len(test_labels)}))
