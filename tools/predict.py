"""Say which digits are in pictures: `python -m tools.predict PICTURE...`.

Reads   the pictures, data/model/model.keras, data/tensors/manifest.json
Prints  for each picture its path, the class, and the second guess, with their probabilities

Pictures are prepared as those of MNIST were (http://yann.lecun.com/exdb/mnist): cut to the ink,
scaled into a box of 20/28 of the network's input with the aspect kept, and put with their
centre of mass into its middle. Before that, paper is made black and even, whatever its shadows.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageOps

from stages.common import errors, params, paths, tensors
from stages.common.tensors import UInt8
from stages.evaluate import EvaluateParams
from stages.model import runtime
from tools.pack import read

_SIDE = 256  # pixels at most while ink is looked for: enough for 20, and dust and noise go
_CONTRAST = 40  # of the ink, 0..255; blank sheets with shadows had up to 35, thin pens 57 and more


def ink(picture: Image.Image) -> Image.Image:
    """Return what is drawn on a grey picture, cut out: full ink is 255, and paper 0.

    The picture itself is scaled down. Raises ValueError if nothing is drawn on it.
    """
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    side = min(picture.size)
    # Strokes differ from what is around them more than paper does, so they decide the skewness.
    around = picture.filter(ImageFilter.GaussianBlur(0.3 * side))
    if ((np.asarray(picture, float) - np.asarray(around)) ** 3).sum() < 0:
        picture = ImageOps.invert(picture)
    # Paper is what remains when all that is narrower than a stroke may be is taken away.
    small = picture.copy()
    small.thumbnail((64, 64), Image.Resampling.BOX)
    width = min(small.size) * 2 // 5 // 2 * 2 + 1  # odd
    for step in (ImageFilter.MinFilter(width), ImageFilter.MaxFilter(width)):
        small = small.filter(step)
    paper = small.filter(ImageFilter.GaussianBlur(width / 4)).resize(picture.size)
    pixels = np.asarray(ImageChops.subtract(picture, paper), float)
    high = np.percentile(pixels, 99.9)
    if high < _CONTRAST:
        raise ValueError("nothing is drawn on it; write larger or darker, or give --plain")
    # Around a speck of dust there is much less ink than around a stroke.
    mask = pixels > high / 2
    blur = ImageFilter.GaussianBlur(0.05 * side)
    crowd = np.asarray(Image.fromarray(mask).convert("L").filter(blur))
    mask &= crowd > 0.1 * crowd.max()
    left, top, right, bottom = Image.fromarray(mask).getbbox() or (0, 0, *picture.size)
    # Less than a quarter of the darkest ink is noise or shadow, more than 0.85 is full.
    cut = pixels[top:bottom, left:right] / high
    return Image.fromarray((255 * (cut - 0.25) / 0.6).clip(0, 255).astype(np.uint8))


def prepare(picture: Image.Image, size: tuple[int, int]) -> UInt8:
    """Return a grey picture as MNIST has them, of a size (height, width); raises as `ink` does."""
    drawn = ink(picture)
    scale = 20 / 28 * min(size) / max(drawn.size)
    drawn = drawn.resize([max(1, round(scale * length)) for length in drawn.size])
    sums = [np.asarray(drawn, float).sum(axis) for axis in (0, 1)]
    x, y = (np.average(np.arange(len(weights)), weights=weights) for weights in sums)
    canvas = Image.new("L", size[::-1])
    # MNIST's centre is the pixel with index 14 of 28.
    canvas.paste(drawn, (round(size[1] // 2 - x), round(size[0] // 2 - y)))
    return np.asarray(canvas)


def main() -> None:
    """Prepare the pictures, print a line for each; a bad one does not keep others from theirs."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.predict", description="say which digits are in pictures"
    )
    add = parser.add_argument
    add("pictures", nargs="+", metavar="PICTURE")
    add("--plain", action="store_true", help="only scale them, as tools.pack --size does")
    add("--invert", action="store_true", help="with --plain: as in tools.pack")
    given = parser.parse_args()
    parameters = params.load("evaluate", EvaluateParams)
    classes = tensors.read_manifest().classes
    runtime.start(0, parameters.threads, parameters.instructions)
    from stages.model import model_file  # TensorFlow must be set up first

    model = model_file.load(paths.MODEL)
    size, failed = model.input_shape[1:3], False
    for name in given.pictures:
        try:
            if given.plain:
                image = np.asarray(read(Path(name), size, given.invert))
            else:
                image = prepare(read(Path(name)), size)
        except Exception as error:  # Pillow raises almost anything
            print(errors.line(f"{name}: cannot be read: {error}"), file=sys.stderr)
            failed = True
            continue
        [values] = model(image[None, ..., None], training=False).numpy()
        second, first = (f"{classes[i]} ({values[i]:.2f})" for i in values.argsort()[-2:])
        print(f"{name}: {first}, or {second}")
    sys.exit(failed)


if __name__ == "__main__":
    errors.run(main)
