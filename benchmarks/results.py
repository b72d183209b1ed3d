"""The results of a benchmark, with the machine and the versions that they belong to."""

import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"


def describe() -> dict[str, str]:
    """Return names and values: processor, cores, memory, Python, TensorFlow and Keras."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        names = {key.strip(): value.strip() for key, value in fields.items()}
        processor = names.get("model name", processor)
        extensions = {"avx2", "avx512f", "avx512_bf16", "amx_bf16"} & set(
            names.get("flags", "").split()
        )
        processor += f" ({', '.join(sorted(extensions))})"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": processor,
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("tensorflow", "keras", "numpy", "dvc")},
    }


def write(name: str, table: list[str], figures: dict[str, Any]) -> None:
    """Print a Markdown table; write it to results/NAME.md and the figures to NAME.json."""
    machine = describe()
    text = "\n".join([*table, "", "; ".join(f"{key} {value}" for key, value in machine.items())])
    content = json.dumps({"machine": machine} | figures, indent=2)
    for suffix, written in (("md", text), ("json", content)):
        (FOLDER / f"{name}.{suffix}").write_text(written + "\n", encoding="utf-8")
    print(text)
