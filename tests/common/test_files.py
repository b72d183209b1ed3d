"""Output files are whole or absent."""

import errno
import json
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from stages.common import files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new folder/a.txt"
    with files.replacing(target) as temporary:
        assert temporary.parent == target.parent  # on the same file system
        assert temporary.suffix == target.suffix  # Keras and NumPy want their own
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


def test_what_a_killed_process_leaves_is_written_over(tmp_path: Path) -> None:
    (tmp_path / ".tmp-a").write_text("half")
    with files.replacing(tmp_path / "a") as temporary:
        assert not temporary.exists()  # a link there may point into DVC's cache
        temporary.write_text("new")
    assert names(tmp_path) == ["a"]


def test_a_full_disk_is_reported_with_the_name_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space") as full, files.replacing(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert full.value.filename == str(tmp_path)
    with pytest.raises(IsADirectoryError) as folder, files.replacing(tmp_path) as temporary:
        temporary.touch()
    assert Path(folder.value.filename).parent == tmp_path.parent


def test_json_has_six_decimals_and_keeps_the_order_of_its_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"z": 1 / 3, "a": {"n": 2, "f": 1e-9}})
    assert path.read_bytes() == (
        b'{\n  "z": 0.333333,\n  "a": {\n    "n": 2,\n    "f": 0.0\n  }\n}\n'
    )
    assert list(json.loads(path.read_text())) == ["z", "a"]
