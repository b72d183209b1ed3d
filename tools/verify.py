"""Hash again what dvc.lock pins, and mend what can be mended: `make verify`.

DVC goes by the times of a file and by the mode of its cache's objects: to it, bytes that change
behind its back are up to date. This reads every byte, in the workspace and in the cache.

- A damaged object leaves the cache, and is taken anew from the workspace if that is sound.
- A damaged file in the workspace stays, but DVC is made to look at it: `dvc repro` then restores it
  from the cache, or makes it again.

With --remote it reads the remote instead and removes what is damaged there. The next `dvc push`
replaces it: as long as a remote has anything of the right name, DVC sends nothing.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import IntEnum
from pathlib import Path
from typing import TypeVar

from dvc.exceptions import DvcException
from dvc.output import Output
from dvc.repo import Repo
from dvc_data.hashfile.build import build
from dvc_data.hashfile.db import HashFileDB
from dvc_data.hashfile.tree import Tree
from dvc_objects.errors import ObjectFormatError
from tqdm import tqdm

from stages.common import errors
from stages.common.errors import StageError

T = TypeVar("T")


class State(IntEnum):
    """What a look at the bytes says; of several states the greatest counts."""

    SOUND = 0
    MISSING = 1
    DAMAGED = 2


def state_of_file(output: Output, store: HashFileDB) -> State:
    """Hash an output, file or folder, in the workspace."""
    if not output.exists:
        return State.MISSING
    # A store made by hand has no memory of earlier hashes: so every byte is read.
    _, _, found = build(store, output.fs_path, output.fs, output.hash_name, dry_run=True)
    return State.SOUND if found.hash_info == output.hash_info else State.DAMAGED


def state_of_objects(output: Output, store: HashFileDB) -> State:
    """Hash the objects of an output in a cache or a remote; remove those that are damaged."""

    def state_of_object(key: str) -> State:
        try:
            store.check(key)
        except FileNotFoundError:
            return State.MISSING
        except ObjectFormatError:  # DVC has removed it
            return State.DAMAGED
        return State.SOUND

    state = state_of_object(output.hash_info.value)
    if output.hash_info.isdir and state is State.SOUND:
        entries = Tree.load(store, output.hash_info)
        return max((state_of_object(entry.value) for _, _, entry in entries), default=state)
    return state


def look_again(output: Output) -> None:
    """Make DVC hash an output when it next needs to know."""
    path = Path(output.fs_path)
    for file in path.rglob("*") if path.is_dir() else [path]:
        os.utime(file)


def verify_local(repo: Repo) -> list[str]:
    """Check workspace and cache, mend what can be; return what was wrong."""
    cache = HashFileDB(repo.cache.local.fs, repo.cache.local.path)
    problems = [
        f"remote {name}: would be pulled from unchecked; run `dvc remote modify {name} verify true`"
        for name, settings in repo.config["remote"].items()
        if not settings["verify"]
    ]
    for output, (file, cached) in examine(
        (output for output in repo.index.outs if output.hash_info),
        lambda output: (state_of_file(output, cache), state_of_objects(output, cache)),
    ):
        if cached is State.DAMAGED and file is State.SOUND and output.use_cache:
            output.commit(relink=False)
            problems.append(f"{output}: damaged in the cache; replaced there from the workspace")
        elif cached is State.DAMAGED:
            problems.append(f"{output}: damaged in the cache; removed there")
        if file is State.DAMAGED:
            look_again(output)
            problems.append(f"{output}: not what dvc.lock says")
    return problems


def verify_remote(repo: Repo) -> list[str]:
    """Check the default remote, remove what is damaged there; return what was wrong."""
    remote = repo.cloud.get_remote_odb()
    return [
        f"{output}: damaged in the remote; removed there"
        for output, state in examine(
            (output for output in repo.index.outs if output.hash_info and output.use_cache),
            lambda output: state_of_objects(output, remote),
        )
        if state is State.DAMAGED
    ]


def examine(outputs: Iterable[Output], look: Callable[[Output], T]) -> Iterator[tuple[Output, T]]:
    """Yield each output and what `look` says of it, with a progress bar on a terminal."""
    outputs = list(outputs)
    with ThreadPoolExecutor() as pool:
        found = pool.map(look, outputs)
        yield from zip(outputs, tqdm(found, total=len(outputs), disable=None), strict=True)


def main() -> None:
    """Check one side, print a line for each thing that is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tools.verify", description="verify data")
    parser.add_argument("--remote", action="store_true", help="check the default remote instead")
    remote = parser.parse_args().remote
    try:
        with Repo() as repo, repo.lock:
            problems = verify_remote(repo) if remote else verify_local(repo)
    except DvcException as error:
        raise StageError(str(error)) from None
    for problem in problems:
        print("error:", problem, file=sys.stderr)
    if problems:
        remedy = "`dvc push`" if remote else "`dvc fetch` if you have a remote, then `dvc repro`"
        raise StageError(f"{len(problems)} problem(s) found; run {remedy}")
    print("Everything that is here is what dvc.lock says")


if __name__ == "__main__":
    errors.run(main)
