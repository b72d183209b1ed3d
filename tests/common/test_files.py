"""Output files are whole or absent."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from conftest import ROOT

from stages.common import files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new folder/a.txt"
    with files.replacing(target) as temporary:
        assert temporary.parent.parent == target.parent  # on the same file system
        assert temporary.name == target.name
        temporary.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert names(target.parent) == ["a.txt"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fail() -> None:
        with files.replacing(target) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert target.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_of_several_outputs_all_or_none_are_replaced(tmp_path: Path) -> None:
    def fail() -> None:
        with ExitStack() as outputs:
            for name in ("a", "b"):
                outputs.enter_context(files.replacing(tmp_path / name)).write_text("new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(tmp_path) == []


def test_the_umask_decides_the_mode(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with files.replacing(tmp_path / "a") as temporary:
            temporary.write_text("x")
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


def test_a_link_is_replaced_and_what_it_points_to_is_untouched(tmp_path: Path) -> None:
    # DVC can link outputs to its cache: writing through the link would damage it.
    cached, target = tmp_path / "cached", tmp_path / "output"
    cached.write_text("cached")
    target.symlink_to(cached)
    with files.replacing(target) as temporary:
        temporary.write_text("new")
    assert cached.read_text() == "cached"
    assert not target.is_symlink()
    assert target.read_text() == "new"


WRITER = """
import sys, time
from pathlib import Path
from stages.common import files
for _ in range(int(sys.argv[2])):
    with files.replacing(Path(sys.argv[1])) as temporary:
        temporary.write_text("half")
        if sys.argv[2] == "1":
            print("writing", flush=True)
            time.sleep(60)
        temporary.write_text("whole" * 1000)
"""


def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


@contextmanager
def writing(target: Path, times: int = 1) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", WRITER, str(target), str(times)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as writer:
        yield writer


def test_what_a_killed_process_leaves_is_gone_after_the_next_run(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_text("old")
    for _ in range(3):
        with writing(target) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            assert len(names(tmp_path)) == 2
            # While it lives, its file is no leftover.
            with files.replacing(target) as temporary:
                temporary.write_text("other")
            assert len(names(tmp_path)) == 2
            writer.send_signal(signal.SIGKILL)
        assert target.read_text() == "other"
        assert len(names(tmp_path)) == 2  # and so it stays, however often this happens
    with files.replacing(target) as temporary:
        temporary.write_text("new")
    assert names(tmp_path) == ["a"]


@pytest.mark.slow
def test_several_processes_at_once_each_write_a_whole_file(tmp_path: Path) -> None:
    target = tmp_path / "a"
    with ExitStack() as stack:
        writers = [stack.enter_context(writing(target, times=300)) for _ in range(3)]
        while any(writer.poll() is None for writer in writers):
            if target.exists():
                assert target.read_text() == "whole" * 1000
        for writer in writers:
            assert writer.communicate() == (b"", b"")
            assert writer.returncode == 0
    assert names(tmp_path) == ["a"]


def test_files_of_others_are_no_leftovers(tmp_path: Path) -> None:
    dead = dead_process()
    others = [".a.b.tmp", ".a.tmp", ".a.x.y.tmp", f".ab.{dead}.x.tmp"]
    others += [f".a.b.{dead}.x.tmp", f".a.{os.getppid()}.x.tmp", f"a.{dead}.x.tmp"]
    for name in others:
        (tmp_path / name).mkdir()
    # In a container each run may have the same id.
    for process in (dead, os.getpid(), "9" * 20):
        (tmp_path / f".a.{process}.x.tmp").mkdir()
        (tmp_path / f".a.{process}.x.tmp/a").touch()
    with files.replacing(tmp_path / "a") as temporary:
        temporary.touch()
    assert names(tmp_path) == sorted(["a", *others])


def test_a_process_that_nobody_has_waited_for_yet_is_dead(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.read()
        time.sleep(0.2)
        (tmp_path / f".a.{process.pid}.x.tmp").mkdir()
        with files.replacing(tmp_path / "a") as temporary:
            temporary.touch()
        assert names(tmp_path) == ["a"]


def test_folders_of_another_users_process_stay(tmp_path: Path) -> None:
    (tmp_path / ".a.1.x.tmp").mkdir()
    with files.replacing(tmp_path / "a") as temporary:
        temporary.touch()
    assert names(tmp_path) == [".a.1.x.tmp", "a"]


@pytest.mark.parametrize("name", ["[a]", "a*", "a.b.c"])
def test_names_that_are_patterns(tmp_path: Path, name: str) -> None:
    with writing(tmp_path / name) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        writer.kill()
    with files.replacing(tmp_path / name) as temporary:
        temporary.touch()
    assert names(tmp_path) == [name]


def test_no_locks_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # On NFS without a lock daemon every lock fails with ENOLCK.
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    for name in ("flock", "lockf", "fcntl"):
        monkeypatch.setattr(fcntl, name, fail)
    with files.replacing(tmp_path / "a") as temporary:
        temporary.touch()
    assert names(tmp_path) == ["a"]


def test_json_has_six_decimals_and_keeps_the_order_of_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"z": 1 / 3, "a": {"n": 2, "f": 1e-9}})
    assert path.read_bytes() == (
        b'{\n  "z": 0.333333,\n  "a": {\n    "n": 2,\n    "f": 0.0\n  }\n}\n'
    )
    assert list(json.loads(path.read_text())) == ["z", "a"]
