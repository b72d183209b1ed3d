"""Fetch the four files of the chosen data set, checked against the catalogue.

Reads   data/datasets.yaml, and the mirrors that it lists
Writes  data/raw/{train-images-idx3,train-labels-idx1,t10k-images-idx3,t10k-labels-idx1}-ubyte
"""

import sys
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from stages.common import errors, files, params, paths
from stages.common.errors import StageError, one_line
from stages.dataset import catalogue, download
from stages.dataset.download import Limits, MirrorError, NoAnswerError


class FetchParams(params.Section):
    """The section `fetch` of params.yaml."""

    dataset: str


def fetch(
    dataset: catalogue.DataSet, folder: Path, limits: Limits
) -> tuple[list[str], dict[str, str]]:
    """Write the files of `dataset` into `folder`: all of them, whole and verified, or none.

    Returns the mirrors that were used, and the reason for each one that failed.
    Raises StageError that names the file, and OSError if `folder` cannot be written.
    """
    total = sum(file.size for file in dataset.files.values())
    mirrors, used, failures = list(dataset.mirrors), set[str](), dict[str, str]()
    # `disable=None`: no bar unless a person is watching.
    bar = tqdm(total=total, desc="fetch", unit="B", unit_scale=True, disable=None)
    with bar, download.session(limits) as web, ExitStack() as written:
        for name, file in dataset.files.items():
            target = written.enter_context(files.replacing(folder / name))
            before = bar.n
            for mirror in mirrors.copy():
                try:
                    with target.open("wb") as output:
                        for chunk in download.chunks(web, mirror, name, file, limits):
                            bar.update(output.write(chunk))
                    used.add(mirror)
                    break
                except MirrorError as error:
                    failures[mirror] = str(error)
                    bar.update(before - bar.n)
                    if isinstance(error, NoAnswerError):
                        mirrors.remove(mirror)
            else:
                raise StageError(
                    f"{name}.gz: no mirror has it: {_listed(failures)}; put the file into a "
                    f"folder that {paths.CATALOGUE} lists as a mirror"
                )
    return [mirror for mirror in dataset.mirrors if mirror in used], failures


def _listed(failures: dict[str, str]) -> str:
    return "; ".join(f"{mirror}: {why}" for mirror, why in failures.items())


def main() -> None:
    """Fetch what params.yaml chooses."""
    params.load("fetch", FetchParams)
    limits = params.load("limits", Limits)
    dataset = catalogue.selected()
    used, failures = fetch(dataset, paths.RAW, limits)
    sources = ", ".join(used)
    if failures:
        print(one_line(f"using {sources}, because {_listed(failures)}"), file=sys.stderr)
    print(one_line(f"fetched {dataset.title} from {sources}"))


if __name__ == "__main__":
    errors.run(main)
