"""The images of each step, against plain NumPy."""

import math
from typing import Any

import numpy as np
import pytest

from stages.model import batches
from stages.model.batches import Batches

ALL = slice(None)


def new(images: int = 250, **settings: Any) -> Batches:
    """Return batches of images (N, 9, 9, 1), each of one colour, its number, and three classes."""
    pixels = np.arange(images, dtype=np.uint8).reshape(-1, 1, 1, 1) * np.ones((9, 9, 1), np.uint8)
    labels = np.eye(3, dtype=np.uint8)[np.arange(images) % 3]
    return Batches(pixels, labels, **{"size": 10, "seed": 5} | settings)


def test_every_epoch_is_a_permutation_of_its_own() -> None:
    data = new(256)
    assert data.in_epoch == 25  # six images are left over, others in each epoch
    epochs = []
    for epoch in range(3):
        images, labels = data.take(25 * epoch, 25, ALL)
        assert (images.shape, labels.shape) == ((25, 10, 9, 9, 1), (25, 10, 3))
        numbers = images[:, :, 0, 0, 0]
        np.testing.assert_array_equal(labels.argmax(2), numbers % 3)
        assert len(set(numbers.ravel())) == 250
        epochs.append(tuple(numbers.ravel()))
    assert len(set(epochs)) == 3
    assert epochs[0] != tuple(new(256, seed=6).take(0, 25, ALL)[0][:, :, 0, 0, 0].ravel())


def test_a_step_depends_on_nothing_but_the_seed_and_itself() -> None:
    settings: dict[str, Any] = {"shift": 2, "distortion": 0.2}
    images, labels = new(**settings).take(30, 20, ALL)
    for first, count, own in ((30, 7, ALL), (37, 13, ALL), (30, 20, slice(5, 10)), (49, 1, ALL)):
        some, theirs = new(**settings).take(first, count, own)
        part = slice(first - 30, first - 30 + count)
        np.testing.assert_array_equal(some, images[part, own])
        np.testing.assert_array_equal(theirs, labels[part, own])
    assert (new(seed=6, **settings).take(30, 20, ALL)[0] != images).any()


@pytest.mark.parametrize(("shift", "distortion"), [(3, 0.3), (3, 0), (0, 0.3)])
def test_images_are_distorted_first_and_then_shifted_anew_in_each_step(
    shift: int, distortion: float
) -> None:
    random = np.random.default_rng(1)
    originals = random.integers(1, 256, (200, 9, 9, 1), np.uint8)
    data = Batches(originals, np.eye(200, dtype=np.uint8), 5, 4, shift, distortion)
    moves = set()
    for step in (0, 1, 39, 40):
        images, labels = data.take(step, 1, ALL)
        random = np.random.default_rng([4, 1, step])
        maps = np.eye(2) + random.uniform(-0.3, 0.3, (5, 2, 2)) if distortion else [np.eye(2)] * 5
        offsets = random.integers(-3, 4, (5, 2)) if shift else np.zeros((5, 2), int)
        moves.add(tuple(offsets.ravel()))
        for image, label, matrix, (down, right) in zip(
            images[0], labels[0], maps, offsets, strict=True
        ):
            seen = np.zeros((15, 15))
            original = originals[label.argmax(), ..., 0]
            seen[3 + down : 12 + down, 3 + right : 12 + right] = bilinear(original, matrix)
            np.testing.assert_allclose(image[..., 0], np.floor(seen[3:12, 3:12]), atol=1)
    assert len(moves) == (4 if shift else 1)


def test_shift_moves_images_and_leaves_black_behind() -> None:
    offsets = np.array([(0, 0), (1, 0), (0, 1), (-1, 0), (0, -2), (2, 3), (-3, -3)])
    images = np.zeros((len(offsets), 9, 8, 1), np.uint8)
    images[:, 4, 3] = 200
    images[:, 0, 0] = 9  # leaves the picture when it is moved up or left
    moved = batches.shift(images, offsets)
    assert (moved.dtype, moved.shape) == (images.dtype, images.shape)
    for image, (down, right) in zip(moved, offsets, strict=True):
        expected = {(4 + down, 3 + right): 200}
        if down >= 0 and right >= 0:
            expected[down, right] = 9
        assert {(y, x): image[y, x, 0] for y, x, _ in np.argwhere(image)} == expected


def bilinear(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return image (H, W) seen through a linear map of (x, y) about its centre, pixel by pixel."""
    height, width = image.shape
    centre = np.array([width - 1, height - 1]) / 2
    seen = np.zeros((height, width))
    for y, x in np.ndindex(height, width):
        across, down = matrix @ (np.array([x, y]) - centre) + centre
        for column in (math.floor(across), math.floor(across) + 1):
            for row in (math.floor(down), math.floor(down) + 1):
                if 0 <= row < height and 0 <= column < width:
                    share = (1 - abs(across - column)) * (1 - abs(down - row))
                    seen[y, x] += share * image[row, column]
    return seen


def test_distort_turns_scales_and_shears_about_the_centre() -> None:
    random = np.random.default_rng(3)
    images = random.integers(0, 256, (20, 9, 12, 1), np.uint8)
    matrices = np.eye(2) + random.uniform(-0.3, 0.3, (20, 2, 2))
    distorted = batches.distort(images, matrices)
    assert (distorted.dtype, distorted.shape) == (images.dtype, images.shape)
    for image, matrix, got in zip(images, matrices, distorted, strict=True):
        expected = bilinear(image[..., 0], matrix)
        # The fraction of a grey level is cut off.
        np.testing.assert_allclose(got[..., 0], np.floor(expected), atol=1)
        assert np.abs(got[..., 0] - image[..., 0]).max() > 20
