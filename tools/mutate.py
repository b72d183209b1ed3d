"""Change the code in ways that matter, and tell whether a test fails: `python -m tools.mutate`.

The changes stand in tests/mutants.yaml, each with the tests that must catch it. They are made in a
copy of the project, one at a time. A change that no test catches is an error, unless the list gives
the reason why none can or need.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from pydantic import Field
from tqdm import tqdm

from stages.common import errors, params
from stages.common.errors import StageError

LIST = Path("tests/mutants.yaml")
OPTIONS = ("-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly")


class Change(params.Section):
    """One change: a piece of text that stands in the file exactly once, and what replaces it."""

    breaks: str  # what goes wrong then, in a few words
    old: str = Field(min_length=1)
    new: str
    reason: str = ""  # why it may survive


class Group(params.Section):
    """Changes of one file that the same tests catch."""

    file: Path = Field(strict=False)
    tests: str  # arguments of pytest
    changes: list[Change]


class _List(params.Section):
    groups: list[Group]


def load(path: Path = LIST) -> list[Group]:
    """Read the list of changes; raise StageError that names what is wrong in it."""
    return params.load("mutants", _List, path).groups


def apply(change: Change, text: str) -> str:
    """Return the text of a file with the change made; raise ValueError if it does not apply."""
    if (count := text.count(change.old)) != 1:
        raise ValueError(f"the old text stands there {count} times")
    return text.replace(change.old, change.new)


def copy_project(target: Path) -> None:
    """Copy what Git tracks, as it is in the work tree, into a repository of its own."""
    command = ["git", "ls-files", "-z"]
    tracked = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for name in filter(None, tracked.split("\0")):
        if Path(name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(name, target / name)
    subprocess.run(["git", "init", "-q", target], check=True)


def passes(tests: str, project: Path) -> bool:
    """Run tests in a copy of the project; raise StageError if pytest does not get to run them."""
    command = [sys.executable, "-m", "pytest", *OPTIONS, *shlex.split(tests)]
    # Compiled code counts as new by whole seconds and its length, so a change could be missed.
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(
        command, cwd=project, env=env, check=False, capture_output=True, text=True
    )
    if result.returncode not in (0, 1):
        raise StageError(f"`pytest {tests}` ends with status {result.returncode}: {result.stdout}")
    return result.returncode == 0


def run(groups: list[Group], project: Path) -> bool:
    """Make each change in `project`, a copy, and print what comes of it; return if all is well."""
    counts = {"caught": 0, "SURVIVED": 0, "survived, as expected": 0, "does not apply": 0}
    unchanged: set[str] = set()
    with tqdm(total=sum(len(group.changes) for group in groups), disable=None) as bar:
        for group in groups:
            path = project / group.file
            text = path.read_text("utf-8")
            if group.tests not in unchanged and not passes(group.tests, project):
                raise StageError(f"`pytest {group.tests}` fails without a change; correct it first")
            unchanged.add(group.tests)
            for change in group.changes:
                try:
                    path.write_text(apply(change, text), "utf-8")
                except ValueError:
                    outcome = "does not apply"
                else:
                    survived = "survived, as expected" if change.reason else "SURVIVED"
                    outcome = survived if passes(group.tests, project) else "caught"
                    path.write_text(text, "utf-8")
                counts[outcome] += 1
                bar.write(f"{outcome}: {group.file}: {change.breaks}", file=sys.stdout)
                sys.stdout.flush()
                bar.update()
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count))
    return not counts["SURVIVED"] and not counts["does not apply"]


def main() -> None:
    """Make the changes that are asked for in a copy of the project."""
    parser = argparse.ArgumentParser(prog="python -m tools.mutate", description="change the code")
    parser.add_argument("--only", default="", metavar="PATTERN", help="in `FILE: WHAT IT BREAKS`")
    only = parser.parse_args().only
    pattern = re.compile(only)
    groups = []
    for group in load():
        chosen = [c for c in group.changes if pattern.search(f"{group.file}: {c.breaks}")]
        groups += [group.model_copy(update={"changes": chosen})] if chosen else []
    if not groups:
        raise StageError(f"--only {only}: no change in the list matches")
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        copy_project(Path(folder))
        if not run(groups, Path(folder)):
            raise StageError("a change survived or does not apply; write a test, or correct it")


if __name__ == "__main__":
    errors.run(main)
