"""data/raw gets all four files, right and whole, or stays as it was."""

import contextlib
import gzip
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from project import ROOT, add_small_dataset, disk_of
from servers import Request, mirror, refusing, separate, serving, silent

from stages import fetch
from stages.common.errors import StageError
from stages.dataset.catalogue import FILE_NAMES

LAST = FILE_NAMES[-1]
REFUSED = "ConnectionError: [Errno 111] Connection refused"
LIMITS = {"connect_timeout": 20, "stall_timeout": 20, "retries": 0}  # ample on a busy machine


class Place:
    """A folder that fetch runs in, with the small data set in its catalogue and in a folder."""

    def __init__(self, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.path = path
        self.capsys = capsys
        self.raw = path / "data/raw"
        self.bundled = path / "data/mirror/small"
        add_small_dataset(path)
        self.packed = {file.name: file.read_bytes() for file in self.bundled.iterdir()}
        self.contents = {name: gzip.decompress(self.packed[f"{name}.gz"]) for name in FILE_NAMES}
        self.params()

    def params(self, **sections: dict[str, Any]) -> None:
        content = {"fetch": {"dataset": "small"}, "limits": LIMITS} | sections
        (self.path / "params.yaml").write_text(yaml.safe_dump(content))

    def mirrors(self, *mirrors: str) -> None:
        path = self.path / "data/datasets.yaml"
        catalogue = yaml.safe_load(path.read_text())
        catalogue["small"]["mirrors"] = list(mirrors)
        path.write_text(yaml.safe_dump(catalogue, sort_keys=False))

    def respond(self, request: Request) -> None:
        request.answer(self.packed[Path(request.path).name])

    def run(self) -> tuple[str, str]:
        """Fetch; return what was written to stdout and stderr."""
        fetch.main()
        assert self.files() == self.contents
        out, err = self.capsys.readouterr()
        return out, err

    def error(self) -> str:
        """Fetch, which fails; return why."""
        with pytest.raises(StageError) as error:
            fetch.main()
        assert self.capsys.readouterr() == ("", "")
        return str(error.value)

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.raw.iterdir()}

    def start(self, **options: Any) -> Any:
        return subprocess.Popen(
            [sys.executable, "-m", "stages.fetch"],
            cwd=self.path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=options.pop("stderr", subprocess.PIPE),
            text=True,
            **options,
        )


@pytest.fixture
def place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Place:
    separate(monkeypatch)
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path, capsys)


# --- What it writes and says -------------------------------------------------------------------


def test_the_four_files_come_from_the_first_mirror(place: Place) -> None:
    with mirror(place.respond) as good:
        place.mirrors(good.url, "data/mirror/small/")
        assert place.run() == (f"fetched Small from {good.url}\n", "")
        assert good.requests == [f"/data/{name}.gz" for name in FILE_NAMES]


def test_one_line_says_which_mirrors_were_used_and_why(place: Place) -> None:
    def lack_one(request: Request) -> None:
        (serving(status=404) if LAST in request.path else place.respond)(request)

    dead = f"http://{refusing()}/"
    with mirror(lack_one) as good:
        place.mirrors(dead, good.url, "data/mirror/small/", "nowhere")
        out, err = place.run()
    used = f"{good.url}, data/mirror/small/"
    why = f"{dead}: {REFUSED}; {good.url}: HTTP 404"
    assert (out, err) == (f"fetched Small from {used}\n", f"using {used}, because {why}\n")


@pytest.mark.slow
def test_a_mirror_that_does_not_answer_is_asked_for_one_file_alone(place: Place) -> None:
    def hang(request: Request) -> None:
        request.sleep(60)

    place.params(limits=LIMITS | {"stall_timeout": 0.3})
    with mirror(hang) as mute, mirror(serving(status=404)) as empty:
        place.mirrors(mute.url, empty.url, "data/mirror/small/")
        assert (
            f"because {mute.url}: ReadTimeout: timed out; {empty.url}: HTTP 404" in place.run()[1]
        )
        assert len(mute.requests) == 1
        assert len(empty.requests) == 4  # it may have the others


def test_all_mirrors_fail(place: Place) -> None:
    (place.bundled / f"{LAST}.gz").write_bytes(b"<html>")
    old = {FILE_NAMES[0]: b"old", "other": b"kept"}
    place.raw.mkdir()
    for name, content in old.items():
        (place.raw / name).write_bytes(content)
    line = place.error()
    assert f"{LAST}.gz: no mirror has it: data/mirror/small/: unpacked, it has 6 bytes" in line
    assert line.endswith("; put the file into a folder that data/datasets.yaml lists as a mirror")
    assert place.files() == old  # although three files were right


def test_passwords_are_used_and_never_printed(place: Place) -> None:
    def after_login(request: Request) -> None:
        if request.headers["Authorization"] == "Basic bWU6c2VjcmV0":  # me:secret
            place.respond(request)
        else:
            request.answer(status=401)

    with mirror(after_login) as good:
        address = good.url.replace("//", "//me:secret@")
        place.mirrors(address)
        assert place.run() == (f"fetched Small from {good.url}\n", "")
    place.mirrors(address, "data/mirror/small/")  # nobody serves it any more
    why = f"{good.url}: {REFUSED}"
    assert place.run()[1] == f"using data/mirror/small/, because {why}\n"
    with mirror(serving(status=302, Location="ftp://me:secret@a/\x1b[31m")) as bad:
        place.mirrors(address, bad.url.replace("//", "//me:secret@"), "data/mirror/small/")
        err = place.run()[1]
        assert f"{why}; {bad.url}: InvalidSchema: No connection adapters were found for 'ftp" in err
        assert "secret" not in err
        assert err.strip().isprintable()


# --- On this side ------------------------------------------------------------------------------


def test_a_full_disk(place: Place) -> None:
    with disk_of(8192), pytest.raises(OSError, match="too large") as error:
        fetch.main()
    assert error.value.filename == "data/raw"
    assert place.files() == {}


@pytest.mark.slow  # starts Python
def test_a_bar_shows_progress_on_a_terminal_and_nothing_elsewhere(place: Place) -> None:
    terminal, stderr = pty.openpty()
    termios.tcsetwinsize(stderr, (24, 100))

    def zeros(request: Request) -> None:
        request.answer(bytes(len(place.contents[Path(request.path).stem])))  # type: ignore[index]

    with mirror(zeros) as bad:
        place.mirrors(bad.url, "data/mirror/small/")
        with place.start(stderr=stderr) as process:
            process.wait()
        os.close(stderr)
        shown = b""
        with contextlib.suppress(OSError):  # how the end of a terminal is told
            while piece := os.read(terminal, 4096):
                shown += piece
        os.close(terminal)
        assert b"100%|" in shown  # what the first mirror sent is taken back
        assert b"30.5k/30.5k" in shown
        with place.start() as process:
            out, err = process.communicate()
    assert out == "fetched Small from data/mirror/small/\n"
    assert re.fullmatch(r"using data/mirror/small/, because http://\S+: unpacked, .+\n", err)


@pytest.mark.slow  # starts Python
def test_ctrl_c_ends_it_in_one_line_and_the_next_run_completes(place: Place) -> None:
    def hang(request: Request) -> None:
        if LAST in request.path:
            request.answer(bytes(30_000), Content_Length="1000000")
            request.sleep(60)
        place.respond(request)

    with mirror(hang) as slow:
        for number, status in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
            place.mirrors(slow.url)
            with place.start() as process:
                deadline = time.monotonic() + 20
                while sum(LAST in path for path in slow.requests) < 1:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                time.sleep(0.1)
                process.send_signal(number)
                _, err = process.communicate()
            assert process.returncode == status
            assert not [path for path in place.raw.iterdir() if path.name in FILE_NAMES]
            if number == signal.SIGINT:
                assert err == "error: interrupted; run it again to complete\n"
                assert place.files() == {}
            slow.requests.clear()
    place.mirrors("data/mirror/small/")
    place.run()


# --- Parameters --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "change", "rule"),
    [
        ("limits", {"connect_timeout": 0}, "connect_timeout must be greater than 0, got 0"),
        ("limits", {"connect_timeout": 601}, "connect_timeout must be less than or equal to 600"),
        ("limits", {"stall_timeout": 0}, "stall_timeout must be greater than 0, got 0"),
        ("limits", {"stall_timeout": 601}, "stall_timeout must be less than or equal to 600"),
        ("limits", {"retries": -1}, "retries must be greater than or equal to 0, got -1"),
        ("limits", {"retries": 11}, "retries must be less than or equal to 10, got 11"),
        ("fetch", {"dataset": "x"}, "dataset must be one of small, got 'x'"),
        ("fetch", {"retries": 1}, "retries is not a known key"),
    ],
)
def test_parameters_are_validated_before_any_work(
    place: Place, section: str, change: dict[str, Any], rule: str
) -> None:
    sections: dict[str, dict[str, Any]] = {"fetch": {"dataset": "small"}, "limits": LIMITS}
    place.params(**{section: sections[section] | change})
    assert place.error().startswith(f"params.yaml: {section}.{rule}")
    assert not place.raw.exists()


def test_extreme_limits_work_and_those_of_other_stages_are_theirs(place: Place) -> None:
    least = {"connect_timeout": 1e-300, "stall_timeout": 1e-300, "retries": 10}
    with silent() as address, mirror(place.respond) as good:
        place.mirrors(f"http://{address}/", "data/mirror/small/")
        place.params(limits=least | {"worker_timeout": 60})
        assert "Timeout: " in place.run()[1]
        place.mirrors(good.url)
        place.params(limits={"connect_timeout": 600, "stall_timeout": 600, "retries": 10})
        place.run()
