"""Measure how fast the train stage trains; benchmarks/compare.py runs it in a prepared project.

    python -m benchmarks.throughput STARTED train.precision=mixed_bfloat16 ...

Trains as the stage does, with some parameters changed, and writes nothing. STARTED is when the
process was started (`time.time()`). The last line is JSON.
"""

import json
import sys
import time
from typing import Any

import numpy as np
import yaml

from stages import train
from stages.common import params, paths


def main() -> None:
    """Train; print images a second, in all and in the steps alone, and when the first were done."""
    started = float(sys.argv[1])
    section = params.read_yaml(paths.PARAMS)["train"]
    for setting in sys.argv[2:]:
        name, value = setting.split("=")
        section[name.removeprefix("train.")] = yaml.safe_load(value)
    parameters = params.validate(section, train.TrainParams, paths.PARAMS, "train")
    run = train.start(parameters, timeout=0)
    import keras  # which train.start has set up

    from stages.model import training

    times, seen = [time.time()], [0]

    class Clock(keras.callbacks.Callback):  # type: ignore[misc] # Keras has no types
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
            times.append(time.time())
            seen.append((batch + 1) * parameters.batch_size)

    training.train(run.model, run.batches, run.validation, 1, [Clock()])
    figures = {
        "images_per_second": seen[-1] / (time.time() - times[0]),  # set-up, validation included
        "images_per_second_in_steps": np.median(np.diff(seen) / np.diff(times)),
        "first_steps": times[1] - started,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
