"""The catalogue is checked before anything relies on it."""

import copy
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


def test_catalogue_that_is_not_there_or_has_an_odd_key(root: Path) -> None:
    (root / "data/datasets.yaml").write_text("? [digits]\n: 1\n")
    with pytest.raises(StageError, match=r"must be one of \('digits',\), got 'digits'"):
        catalogue.selected()
    (root / "data/datasets.yaml").unlink()
    with pytest.raises(StageError, match=r"data/datasets.yaml: not found; run from the root of"):
        catalogue.selected()


def test_merge_keys_may_be_overridden(root: Path) -> None:
    text = yaml.safe_dump({"base": ENTRY}).replace("base:", "base: &base")
    (root / "data/datasets.yaml").write_text(text + "digits:\n  <<: *base\n  title: Mine\n")
    assert catalogue.selected().title == "Mine"


@pytest.mark.parametrize(
    ("mirror", "folder"),
    [
        *(("http://a/~/$HOME/", None), ("https://me:secret@a/", None), ("s3://a/", None)),
        ("data/mirror", "data/mirror"),
        ("/data/a b", "/data/a b"),
        ("~/scans/", "/home/me/scans"),
        ("${HOME}/scans", "/home/me/scans"),
        ("$NOWHERE/scans", "$NOWHERE/scans"),
        ("~no-such-user/scans", "~no-such-user/scans"),
        ("file:///data/a%20b/", "/data/a b"),
    ],
)
def test_the_folder_that_a_mirror_is(
    mirror: str, folder: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("NOWHERE", raising=False)
    assert catalogue.folder(mirror) == (folder and Path(folder))


@pytest.mark.parametrize("name", ["Œuf dur", "二", "क्\u200dष", "می\u200cبینم", "👩\u200d🚀", "$x$"])
def test_names_in_any_script_are_fine(root: Path, name: str) -> None:
    write(root, ENTRY | {"title": name, "classes": [name, "other"]})
    assert catalogue.selected().classes == [name, "other"]


LINE = r" String should match pattern '\A\P{Cc}+\z', got "
FILE: dict[str, Any] = {"size": 10, "sha256": SHA256}


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("title", None, " must be a valid string, got None"),
        ("title", "", f"{LINE}''"),
        ("title", "two\nlines", rf"{LINE}'two\nlines'"),
        ("classes", [], " List should have at least 1 item after validation, not 0, got []"),
        ("classes", ["a", "a"], " must be distinct, got ['a', 'a']"),
        ("classes", ["a", "\x1b[31m"], rf".1{LINE}'\x1b[31m'"),
        ("classes", [0, 1], ".0 must be a valid string, got 0"),
        ("mirrors", "a", " must be a valid list, got 'a'"),
        ("mirrors", [], " List should have at least 1 item after validation, not 0, got []"),
        ("mirrors", ["a", ""], f".1{LINE}''"),
        ("files", [], " must be a valid dictionary, got []"),
        ("files", {}, f".{IMAGES} is missing"),
        ("files", {"../evil": FILE}, f".../evil.[key] must be '{IMAGES}', "),
        ("colour", "red", " is not a known key; check its spelling"),
    ],
)
def test_entry_that_is_not_valid(root: Path, key: str, value: Any, why: str) -> None:
    found = message(root, lambda entry: entry.update({key: value}))
    assert found.startswith(f"data/datasets.yaml: digits.{key}{why}")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("size", value) for value in (0, 1.5, "10", True, None)),
        *(("sha256", value) for value in (SHA256[1:], SHA256 + "0", SHA256.upper(), SHA256 + "\n")),
        *(("sha256", value) for value in ("g" * 64, 0, None)),
    ],
)
def test_size_and_checksum_that_are_not_valid(root: Path, key: str, value: Any) -> None:
    why = message(root, lambda entry: entry["files"][IMAGES].update({key: value}))
    assert why.startswith(f"data/datasets.yaml: digits.files.{IMAGES}.{key} ")


@pytest.mark.parametrize("key", list(ENTRY))
def test_entry_that_lacks_a_key(root: Path, key: str) -> None:
    found = message(root, lambda entry: entry.pop(key))
    assert found == f"data/datasets.yaml: digits.{key} is missing"
