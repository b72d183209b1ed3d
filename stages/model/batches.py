"""The batches of a training: which images each step sees, and how each image is moved."""

from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import keras
import numpy as np
from numpy.typing import NDArray

# Images (N, H, W, C), pixels 0..255, and their one-hot labels (N, classes).
Images: TypeAlias = NDArray[np.uint8]
Labels: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True)
class Batches:
    """The training images in an order of their own in each epoch, each image moved anew.

    What a step sees depends on the seed and on the step alone: not on where a training goes on,
    how many devices share it, or how many steps are taken at once.
    """

    images: Images
    labels: Labels
    size: int  # images in a step
    seed: int
    shift: int = 0  # pixels
    distortion: float = 0

    @property
    def in_epoch(self) -> int:
        """The whole batches in an epoch; images left over are left out of that epoch."""
        return len(self.images) // self.size

    def take(self, step: int, count: int, own: slice) -> tuple[Images, Labels]:
        """Return images (count, B, H, W, C) and labels (count, B, classes) of some steps.

        They are `count` steps from `step` on, all of one epoch; B is the `own` part of each batch.
        """
        epoch, position = divmod(step, self.in_epoch)
        order = _order(self.seed, epoch, len(self.images))[position * self.size :]
        chosen = order[: count * self.size].reshape(count, self.size)[:, own]
        batch = self.images[chosen.ravel()]
        randoms = [np.random.default_rng([self.seed, 1, step + n]) for n in range(count)]
        if self.distortion:
            most = self.distortion
            maps = np.stack([r.uniform(-most, most, (self.size, 2, 2))[own] for r in randoms])
            batch = distort(batch, np.eye(2) + maps.reshape(-1, 2, 2))
        if self.shift:
            size, most = (self.size, 2), self.shift
            moves = np.stack([r.integers(-most, most, size, endpoint=True)[own] for r in randoms])
            batch = shift(batch, moves.reshape(-1, 2))
        return batch.reshape(*chosen.shape, *batch.shape[1:]), self.labels[chosen]


@lru_cache(maxsize=1)
def _order(seed: int, epoch: int, images: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, 0, epoch]).permutation(images)


def shift(images: Images, offsets: NDArray[np.int64]) -> Images:
    """Move each image of (N, H, W, C) by its offset of (N, 2), pixels down and right."""
    count, height, width = images.shape[:3]
    most = np.abs(offsets).max(initial=0)
    padded = np.pad(images, ((0, 0), (most, most), (most, most), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(1, 2))
    down, right = (most - offsets).T
    # The view puts the window's axes last; indexing copies only the chosen windows.
    moved: Images = np.moveaxis(windows[np.arange(count), down, right], 1, -1)
    return moved


def distort(images: Images, maps: NDArray[np.float64]) -> Images:
    """Turn, scale and shear each image of (N, H, W, C) by its linear map of (N, 2, 2).

    Output pixel p shows what lies at A p, p being (x, y) from the centre and A the map: between
    pixels bilinearly, black outside.
    """
    count, height, width = images.shape[:3]
    centre = np.array([width - 1, height - 1]) / 2
    transforms = np.zeros((count, 8), np.float32)  # Keras': a0 a1 a2 b0 b1 b2 and no perspective
    transforms[:, [[0, 1], [3, 4]]] = maps
    transforms[:, [2, 5]] = centre - maps @ centre
    distorted: Images = keras.ops.image.affine_transform(images, transforms).numpy()
    return distorted
