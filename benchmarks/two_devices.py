"""The train stage on two devices: TensorFlow splits the CPU. For `benchmarks.seeds` and tests.

    python -m benchmarks.two_devices

Runs in the current folder, with the parameters and tensors there, as `python -m stages.train` does.
"""

from stages import train
from stages.common import errors
from stages.model import runtime


def start(seed: int, threads: int, instructions: runtime.Instructions) -> None:
    """Start TensorFlow as the stage does, and part the CPU before it is used."""
    _start(seed, threads, instructions)
    import tensorflow as tf

    (cpu,), half = tf.config.list_physical_devices("CPU"), tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(cpu, [half, half])


_start = runtime.start

if __name__ == "__main__":
    runtime.start = start
    errors.run(train.main)
