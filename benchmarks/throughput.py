"""How fast the train stage trains: run by benchmarks/compare.py in a project that has tensors.

    python -m benchmarks.throughput STARTED train.precision=mixed_bfloat16 ...

Trains as the stage does, with some parameters changed, and writes nothing. STARTED is when the
process was started (`time.time()`). The last line is JSON.
"""

import json
import sys
import time

import yaml

from stages import params, train


def main() -> None:
    """Train; print images a second and the seconds until the first steps were done."""
    started = float(sys.argv[1])
    section = params.read_yaml(params.PATH)["train"]
    for setting in sys.argv[2:]:
        name, value = setting.split("=")
        section[name.removeprefix("train.")] = yaml.safe_load(value)
    p = params.validate(section, train.TrainParams, params.PATH, "train")
    _, rows, images = train.fit(p)
    begun = time.time()
    first = 0.0
    for _ in rows:
        first = first or time.time() - started
    figures = {"images_per_second": images / (time.time() - begun), "first_steps": first}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
