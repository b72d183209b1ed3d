"""Fetch the four files of the chosen data set into data/raw, checked against the catalogue."""

import asyncio
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

from pydantic import Field
from tqdm import tqdm

from stages.common import errors, files, params, paths
from stages.common.errors import StageError
from stages.dataset import catalogue
from stages.dataset.catalogue import DataSet
from stages.dataset.download import Downloads, Patience


class FetchParams(params.Section):
    """The section `fetch` of params.yaml."""

    dataset: str
    connect_timeout: float = Field(gt=0, le=600)  # seconds
    stall_timeout: float = Field(gt=0, le=600)  # seconds
    retries: int = Field(ge=0, le=10)


def main() -> None:
    """Fetch what params.yaml chooses."""
    knobs = params.load("fetch", FetchParams)
    dataset = catalogue.selected()
    patience = Patience(knobs.connect_timeout, knobs.stall_timeout, knobs.retries)
    used, failures = fetch(dataset, paths.RAW, patience)
    if failures:
        reasons = "; ".join(f"{mirror}: {reason}" for mirror, reason in failures.items())
        print(f"using {', '.join(used)}, because {reasons}", file=sys.stderr)
    print(f"fetched {dataset.title} from {', '.join(used)}")


def fetch(dataset: DataSet, folder: Path, patience: Patience) -> tuple[list[str], dict[str, str]]:
    """Write the files of `dataset` into `folder`: all of them, whole and verified, or none.

    Returns the mirrors that were used, and for each that failed the reason.
    Raises StageError that names the file, and OSError when `folder` cannot be written.
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
            return asyncio.run(_download(dataset, targets, patience))
    except BaseException:
        if created:
            with suppress(OSError):
                folder.rmdir()
        raise


async def _download(
    dataset: DataSet, targets: dict[catalogue.FileName, Path], patience: Patience
) -> tuple[list[str], dict[str, str]]:
    used: set[str] = set()
    failures: dict[str, str] = {}

    async def download(name: catalogue.FileName) -> None:
        file, target = dataset.files[name], targets[name]
        try:
            mirror, failed = await downloads.fetch(
                name, dataset.mirrors, file.size, file.sha256, target
            )
        except OSError as error:
            place = target.with_name(name)
            raise StageError(f"{place}: not written: {error.strerror}; make room for it") from None
        used.add(mirror)
        failures.update(failed)

    total = sum(file.size for file in dataset.files.values())
    # `disable=None`: no bar unless a person is watching.
    with tqdm(total=total, desc="fetch", unit="B", unit_scale=True, disable=None) as bar:
        try:
            async with Downloads(patience, bar.update) as downloads, asyncio.TaskGroup() as group:
                for name in dataset.files:
                    group.create_task(download(name))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
    return [mirror for mirror in dataset.mirrors if mirror in used], failures


if __name__ == "__main__":
    errors.run(main)
