"""The catalogue is checked before anything relies on it."""

import copy
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from project import ROOT

from stages.common import paths
from stages.common.errors import StageError
from stages.dataset import catalogue

SHA256 = "0123456789abcdef" * 4
ENTRY: dict[str, Any] = {
    "title": "Digits",
    "licence": "none",
    "credit": "nobody",
    "classes": ["zero", "one"],
    "mirrors": ["https://mirror.example/digits/", "data/mirror/digits"],
    "files": {name: {"size": 10, "sha256": SHA256} for name in catalogue.FILE_NAMES},
}
IMAGES = catalogue.FILE_NAMES[0]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root that chooses `digits`; the section's other keys are not the catalogue's business."""
    (tmp_path / "params.yaml").write_text("fetch: {dataset: digits, speed: fast}\n")
    (tmp_path / "data").mkdir()
    write(tmp_path, ENTRY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(root: Path, entry: dict[str, Any]) -> None:
    (root / "data/datasets.yaml").write_text(yaml.safe_dump({"digits": entry, "other": None}))


def message(root: Path, change: Callable[[dict[str, Any]], object] = lambda _: None) -> str:
    """Change the entry; return why `selected` refuses it."""
    entry = copy.deepcopy(ENTRY)
    change(entry)
    write(root, entry)
    with pytest.raises(StageError) as error:
        catalogue.selected()
    return str(error.value)


@pytest.mark.usefixtures("root")
def test_the_chosen_entry() -> None:
    assert catalogue.selected().model_dump() == ENTRY  # `other`, which is wrong, is not looked at


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_catalogue_of_this_project(
    root: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "params.yaml").write_text(f"fetch: {{dataset: {name}}}\n")
    monkeypatch.setattr(paths, "CATALOGUE", ROOT / paths.CATALOGUE)
    dataset = catalogue.selected()
    assert len(dataset.classes) == 10
    # 60,000 and 10,000 images of 28 x 28 behind 16 bytes, labels behind 8.
    sizes = [16 + 60_000 * 784, 8 + 60_000, 16 + 10_000 * 784, 8 + 10_000]
    assert {file: dataset.files[file].size for file in dataset.files} == dict(
        zip(catalogue.FILE_NAMES, sizes, strict=True)
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("fetch: {dataset: x}", "params.yaml: fetch.dataset must be one of digits, other, got 'x'"),
        ("train: {}", "params.yaml: fetch is missing"),
        ("fetch: {}", "params.yaml: fetch.dataset is missing"),
        ("fetch: {dataset: 1}", "params.yaml: fetch.dataset must be a valid string, got 1"),
        ("fetch: {dataset: other}", "data/datasets.yaml: other is missing"),
    ],
)
def test_choice_that_is_not_valid(root: Path, text: str, why: str) -> None:
    (root / "params.yaml").write_text(text)
    assert message(root) == why


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, ": not found; run from the root of the repository"),
        ("digits: 1\n'digits': 2\n", ' in line 2: found duplicate key "digits"; correct it'),
        ("? [digits]\n: 1\n", "fetch.dataset must be one of ('digits',), got 'digits'"),
    ],
)
def test_catalogue_that_is_not_valid(root: Path, text: str | None, why: str) -> None:
    path = root / "data/datasets.yaml"
    path.unlink()
    if text:
        path.write_text(text)
    with pytest.raises(StageError) as error:
        catalogue.selected()
    assert str(error.value).endswith(why)


def test_merge_keys_may_be_overridden(root: Path) -> None:
    text = yaml.safe_dump({"base": ENTRY}).replace("base:", "base: &base")
    (root / "data/datasets.yaml").write_text(text + "digits:\n  <<: *base\n  title: Mine\n")
    assert catalogue.selected().title == "Mine"


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "", "train-images-idx3-ubyte.gz"])
def test_file_name_with_a_path_or_not_one_of_the_four(root: Path, name: str) -> None:
    why = message(root, lambda entry: entry["files"].update({name: entry["files"].pop(IMAGES)}))
    assert f"data/datasets.yaml: digits.files.{name}.[key] must be '{IMAGES}', " in why


@pytest.mark.parametrize(
    "sha256", [SHA256[:-1], SHA256 + "0", SHA256.upper(), SHA256 + "\n", "g" * 64, 0, None]
)
def test_malformed_checksum(root: Path, sha256: Any) -> None:
    why = message(root, lambda entry: entry["files"][IMAGES].update(sha256=sha256))
    assert why.startswith(f"data/datasets.yaml: digits.files.{IMAGES}.sha256 ")


@pytest.mark.parametrize("size", [0, 1.5, "10", True, None])
def test_malformed_size(root: Path, size: Any) -> None:
    why = message(root, lambda entry: entry["files"][IMAGES].update(size=size))
    assert why.startswith(f"data/datasets.yaml: digits.files.{IMAGES}.size must be ")


@pytest.mark.parametrize(
    "mirror",
    [
        *("ftp://mirror.example/", "file://data/", "file:data/", "http:///data/"),
        *("s3://data/", "http://mirror.example/\ndata/", "", "folder\0name"),
    ],
)
def test_mirror_of_an_unknown_scheme_or_none(root: Path, mirror: str) -> None:
    why = message(root, lambda entry: entry["mirrors"].append(mirror))
    assert why == "data/datasets.yaml: digits.mirrors.2 must be an http(s) address or a folder"


@pytest.mark.parametrize(
    ("mirror", "folder"),
    [
        ("http://a/~/$HOME/", None),
        ("http://[::1]/", None),
        ("https://me:secret@a/", None),
        ("data/mirror", "data/mirror"),
        ("/data/a b", "/data/a b"),
        ("~/scans/", "/home/me/scans"),
        ("${HOME}/scans", "/home/me/scans"),
        ("$NOWHERE/scans", "$NOWHERE/scans"),
        ("~no-such-user/scans", "~no-such-user/scans"),
        ("file:///data/a%20b/", "/data/a b"),
    ],
)
def test_mirror_that_is_fine_and_the_folder_that_it_is(
    root: Path, mirror: str, folder: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(root, ENTRY | {"mirrors": [mirror]})
    assert catalogue.selected().mirrors == [mirror]
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("NOWHERE", raising=False)
    assert catalogue.folder(mirror) == (folder and Path(folder))


@pytest.mark.parametrize("name", ["Œuf dur", "二", "क्\u200dष", "می\u200cبینم", "👩\u200d🚀", "$x$"])
def test_names_in_any_script_are_fine(root: Path, name: str) -> None:
    write(root, ENTRY | {"title": name, "classes": [name, "other"]})
    assert catalogue.selected().classes == [name, "other"]


@pytest.mark.parametrize("key", ["title", "classes.1"])
@pytest.mark.parametrize(
    "name", ["two\nlines", "\x1b[31m", "a\x7f", "line\u2028", "\u2029", "\u202eodd", "\ufeffa"]
)
def test_names_that_cannot_be_printed_in_a_line(root: Path, key: str, name: str) -> None:
    change = {"title": name} if key == "title" else {"classes": ["a", name]}
    why = f"must be a line of printable characters, got {name!a}"
    found = message(root, lambda entry: entry.update(change))
    assert found == f"data/datasets.yaml: digits.{key} {why}"


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("mirrors", "ftp://me:secret@a/", " must be a valid list, got ftp://a/"),
        ("mirrors", [], " List should have at least 1 item after validation, not 0, got []"),
        ("classes", [], " List should have at least 1 item after validation, not 0, got []"),
        ("classes", ["a", "a"], " must be distinct"),
        ("classes", ["a", ""], ".1 String should have at least 1 character, got ''"),
        ("classes", [0, 1], ".0 must be a valid string, got 0"),
        ("files", {}, f".{IMAGES} is missing"),
        ("files", [], " must be a valid dictionary, got []"),
        ("title", None, " must be a valid string, got null"),
        ("colour", "red", " is not a known key; check its spelling"),
    ],
)
def test_entry_that_is_not_valid(root: Path, key: str, value: Any, why: str) -> None:
    found = message(root, lambda entry: entry.update({key: value}))
    assert found.startswith(f"data/datasets.yaml: digits.{key}{why}")


@pytest.mark.parametrize("key", list(ENTRY))
def test_entry_that_lacks_a_key(root: Path, key: str) -> None:
    found = message(root, lambda entry: entry.pop(key))
    assert found == f"data/datasets.yaml: digits.{key} is missing"


def test_verify_accepts_the_file_that_is_described_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    right = b"right" * 100_000
    expected = catalogue.File(size=len(right), sha256=hashlib.sha256(right).hexdigest())
    path.write_bytes(right)
    catalogue.verify(path, expected)
    wrong = right[:-1] + b"x"
    path.write_bytes(wrong)
    with pytest.raises(StageError) as error:
        catalogue.verify(path, expected)
    found = hashlib.sha256(wrong).hexdigest()
    advice = "delete it, then run `dvc repro --force fetch`"
    assert str(error.value) == f"{path}: SHA-256 is {found}, not {expected.sha256}; {advice}"
