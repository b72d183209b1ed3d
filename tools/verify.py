"""Check every byte that dvc.lock pins, and repair what can be repaired: `make verify`.

DVC trusts the times of a file, and the mode of an object in its cache. So it does not notice when a
disk, or another program, changes bytes and nothing else.

- A damaged object is removed from the cache, or replaced from the workspace if that is sound.
- A damaged file in the workspace stays, but gets a new time: `dvc repro` then restores it from the
  cache, or makes it again.

With --remote, the remote is checked instead, and damaged objects are removed there so that the next
`dvc push` sends them again. DVC does not send an object whose name the remote already has.
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
    """What the bytes of an output are; the state of a folder is the greatest of its files'."""

    SOUND = 0
    MISSING = 1
    DAMAGED = 2


def state_of_file(output: Output, store: HashFileDB) -> State:
    """Hash an output, a file or a folder, in the workspace."""
    if not output.exists:
        return State.MISSING
    # `store` is new, so it remembers no hashes, and every byte is read.
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


def state_in_remote(output: Output, remote: HashFileDB) -> State:
    """Hash the objects of an output in a remote; remove those that are damaged.

    DVC takes all files of a folder for sent if the folder's own object is there. So this goes, too,
    if a file is damaged or missing.
    """
    state, key = state_of_objects(output, remote), output.hash_info.value
    if output.hash_info.isdir and state is not State.SOUND and remote.exists(key):
        remote.delete(key)
        return State.DAMAGED
    return state


def touch(output: Output) -> None:
    """Give an output the time of now, so that DVC hashes it again."""
    path = Path(output.fs_path)
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.exists():
            os.utime(file)
        else:  # a link to an object that was damaged
            file.unlink()


def verify_local(repo: Repo) -> list[str]:
    """Check and repair workspace and cache; return the problems that were found."""
    cache = HashFileDB(repo.cache.local.fs, repo.cache.local.path)
    problems = [
        f"remote {name}: `dvc pull` would not check its data; "
        f"run `dvc remote modify {name} verify true`"
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
            touch(output)
            problems.append(f"{output}: not what dvc.lock says")
    return problems


def verify_remote(repo: Repo) -> list[str]:
    """Check the default remote, remove damaged objects; return the problems that were found."""
    remote = repo.cloud.get_remote_odb()
    return [
        f"{output}: damaged in the remote; removed there"
        for output, state in examine(
            (output for output in repo.index.outs if output.hash_info and output.use_cache),
            lambda output: state_in_remote(output, remote),
        )
        if state is State.DAMAGED
    ]


def examine(outputs: Iterable[Output], check: Callable[[Output], T]) -> Iterator[tuple[Output, T]]:
    """Yield each output with the result of `check`, and draw a progress bar on a terminal."""
    outputs = list(outputs)
    with ThreadPoolExecutor() as pool:
        results = pool.map(check, outputs)
        yield from zip(outputs, tqdm(results, total=len(outputs), disable=None), strict=True)


def main() -> None:
    """Check this machine, or the remote; print a line for each problem."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.verify", description="check the data against dvc.lock"
    )
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
    print("Every output that is here matches dvc.lock")


if __name__ == "__main__":
    errors.run(main)
