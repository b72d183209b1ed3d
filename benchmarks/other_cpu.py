"""Compare each operation of a training step on this CPU and on an emulated one.

    python -m benchmarks.other_cpu [--emulator "qemu-x86_64 -cpu Haswell"]

Hashes what every operation gives, forward and backward, for a batch of 16 images of random numbers,
with both settings of `instructions`. Needs an emulator of user programs (Debian: qemu-user). Writes
benchmarks/results/other_cpu.md and other_cpu.json. Takes about two minutes.
"""

import argparse
import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
from tqdm import tqdm

from benchmarks import results
from stages.model import runtime

BATCH = 16


def hashes() -> dict[str, str]:
    """Return the SHA-256 of each operation's result, after `runtime.start`."""
    import tensorflow as tf

    random = np.random.default_rng(0)
    found: dict[str, str] = {}

    def draw(*shape: int) -> Any:
        return tf.constant(random.standard_normal(shape), tf.float32)

    def note(name: str, parts: str, arrays: Any) -> None:
        for part, array in zip(parts.split(), arrays, strict=True):
            found[f"{name}, {part}"] = hashlib.sha256(array.numpy().tobytes()).hexdigest()

    def check(name: str, parts: str, operation: Callable[..., Any], *inputs: Any) -> None:
        @tf.function(autograph=False)  # type: ignore[untyped-decorator, unused-ignore]
        def both_ways() -> Any:
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                result = operation(*inputs)
            return result, *tape.gradient(result, inputs, upstream)

        upstream = draw(*operation(*inputs).shape)
        note(name, parts, both_ways())

    def convolve(x: Any, kernel: Any, bias: Any) -> Any:
        return tf.nn.bias_add(tf.nn.conv2d(x, kernel, 1, "SAME"), bias)

    def normalise(x: Any, gamma: Any, beta: Any) -> Any:
        return tf.raw_ops.FusedBatchNormV3(
            x=x, scale=gamma, offset=beta, mean=[], variance=[], epsilon=1e-3, is_training=True
        ).y

    parts = "forward input-gradient weight-gradient bias-gradient"
    for name, side, channels, filters in (("1", 28, 1, 32), ("2", 14, 32, 64), ("3", 7, 64, 128)):
        kernel = draw(3, 3, channels, filters)
        image = draw(BATCH, side, side, channels)
        check(f"convolution {name}", parts, convolve, image, kernel, draw(filters))
    for name, *shape in (("1", 14, 14, 32), ("2", 7, 7, 64), ("3", 1, 1, 6272)):
        channels = int(shape[-1])
        x = draw(BATCH, *map(int, shape))
        check(f"normalisation {name}", parts, normalise, x, draw(channels), draw(channels))
    for name, values, units in (("dense", 6272, 64), ("digit", 64, 10)):
        x, kernel = draw(BATCH, values), draw(values, units)
        check(name, parts, lambda x, w, b: tf.matmul(x, w) + b, x, kernel, draw(units))
    x = draw(BATCH, 28, 28, 32)
    pool = "forward gradient"
    check("pooling, ReLU", pool, lambda x: tf.nn.relu(tf.nn.max_pool2d(x, 2, 2, "VALID")), x)
    labels = tf.one_hot(random.integers(0, 10, BATCH), 10)
    check(
        "cross-entropy",
        pool,
        lambda x: tf.nn.softmax_cross_entropy_with_logits(labels, x),
        draw(BATCH, 10),
    )
    adam = [tf.Variable(draw(6272, 64)), tf.Variable(tf.zeros([6272, 64]))]
    adam.append(tf.Variable(tf.zeros([6272, 64])))
    tf.raw_ops.ResourceApplyAdam(
        var=adam[0].handle,
        m=adam[1].handle,
        v=adam[2].handle,
        beta1_power=0.9,
        beta2_power=0.999,
        lr=0.01,
        beta1=0.9,
        beta2=0.999,
        epsilon=1e-7,
        grad=draw(6272, 64),
    )
    note("Adam", "weights mean square", adam)
    return found


def run(instructions: str, emulator: list[str]) -> dict[str, str]:
    """Return the hashes of a new process, which has TensorFlow to itself."""
    command = [*emulator, sys.executable, "-m", "benchmarks.other_cpu", "--only", instructions]
    result = subprocess.run(command, capture_output=True, check=False)
    if result.returncode:
        sys.exit(f"error: {shlex.join(command)} failed:\n{result.stderr.decode()}")
    return json.loads(result.stdout)  # type: ignore[no-any-return]


def main() -> None:
    """Run here and emulated, with both settings; write what was the same."""
    parser = argparse.ArgumentParser(description="Compare this CPU with an emulated one.")
    parser.add_argument("--emulator", default="qemu-x86_64 -cpu Haswell")
    parser.add_argument("--only", choices=get_args(runtime.Instructions), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        runtime.start(0, 2, arguments.only)
        print(json.dumps(hashes()))
        return
    emulator = shlex.split(arguments.emulator)
    if not shutil.which(emulator[0]):
        sys.exit(f"error: {emulator[0]} is not installed; Debian has it in qemu-user")

    settings = get_args(runtime.Instructions)
    places: list[list[str]] = [[], emulator]
    bar = tqdm([(name, place) for name in settings for place in places], unit="run")
    found = [run(name, place) for name, place in bar]
    same = {
        name: {key: here[key] == there[key] for key in here}
        for name, here, there in zip(settings, found[::2], found[1::2], strict=True)
    }
    table = [f"This CPU and `{arguments.emulator}`:", ""]
    table += [f"| result | {' | '.join(settings)} |", "|---|---|---|"]
    for key in same[settings[0]]:
        words = ("same bits" if same[name][key] else "differs" for name in settings)
        table.append(f"| {key} | {' | '.join(words)} |")
    results.write("other_cpu", table, {"emulator": arguments.emulator, "same": same})


if __name__ == "__main__":
    main()
