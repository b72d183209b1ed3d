"""Fetch the four files of the chosen data set into data/raw, checked against the catalogue.

Reads data/datasets.yaml and the mirrors that it lists, writes data/raw.
"""

import asyncio
import sys
from contextlib import ExitStack, aclosing, suppress
from pathlib import Path

from tqdm import tqdm

from stages.common import errors, files, params, paths
from stages.common.errors import StageError, hide_credentials
from stages.dataset import catalogue
from stages.dataset.catalogue import DataSet
from stages.dataset.download import Downloads
from stages.dataset.web import Limits, Loop


class FetchParams(params.Section):
    """The section `fetch` of params.yaml."""

    dataset: str


def main() -> None:
    """Fetch what params.yaml chooses."""
    params.load("fetch", FetchParams)
    limits = params.load("limits", Limits)
    dataset = catalogue.selected()
    used, failures = fetch(dataset, paths.RAW, limits)
    sources = hide_credentials(", ".join(used))
    if failures:
        reasons = "; ".join(f"{mirror}: {reason}" for mirror, reason in failures.items())
        print(f"using {sources}, because {hide_credentials(reasons)}", file=sys.stderr)
    print(f"fetched {dataset.title} from {sources}")


def fetch(dataset: DataSet, folder: Path, limits: Limits) -> tuple[list[str], dict[str, str]]:
    """Write the files of `dataset` into `folder`: all of them, whole and verified, or none.

    Returns the mirrors that were used, and the reason for each one that failed.
    Raises StageError that names the file, and OSError if `folder` cannot be written.
    """
    for name in dataset.files:
        if (folder / name).is_dir():
            raise StageError(f"{folder / name}: is a folder; remove it")
    created = not folder.exists()
    try:
        with ExitStack() as stack:
            targets = {
                name: stack.enter_context(files.replacing(folder / name)) for name in dataset.files
            }
            with asyncio.Runner(loop_factory=Loop) as runner:
                return runner.run(_download(dataset, targets, limits))
    except BaseException:
        if created:
            with suppress(OSError):
                folder.rmdir()
        raise


async def _download(
    dataset: DataSet, targets: dict[catalogue.FileName, Path], limits: Limits
) -> tuple[list[str], dict[str, str]]:
    total = sum(file.size for file in dataset.files.values())
    # `disable=None`: no bar unless a person is watching.
    with tqdm(total=total, desc="fetch", unit="B", unit_scale=True, disable=None) as bar:
        try:
            async with (
                aclosing(Downloads(limits, bar.update)) as downloads,
                asyncio.TaskGroup() as group,
            ):
                tasks = [
                    group.create_task(downloads.fetch(name, dataset.mirrors, file, targets[name]))
                    for name, file in dataset.files.items()
                ]
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
    used = {task.result()[0] for task in tasks}
    failures = {mirror: why for task in tasks for mirror, why in task.result()[1].items()}
    return [mirror for mirror in dataset.mirrors if mirror in used], failures


if __name__ == "__main__":
    errors.run(main)
