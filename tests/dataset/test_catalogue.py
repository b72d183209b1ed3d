"""The catalogue is checked before anything relies on it."""

import copy
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

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
    (tmp_path / "data/datasets.yaml").write_text(yaml.safe_dump({"digits": ENTRY, "other": None}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def message(root: Path, change: Callable[[dict[str, Any]], object] | None = None) -> str:
    """Change the entry; return why `selected` refuses it."""
    if change:
        entry = copy.deepcopy(ENTRY)
        change(entry)
        (root / "data/datasets.yaml").write_text(yaml.safe_dump({"digits": entry}))
    with pytest.raises(StageError) as error:
        catalogue.selected()
    return str(error.value)


def test_the_chosen_entry(root: Path) -> None:
    dataset = catalogue.selected()
    assert dataset.model_dump() == ENTRY
    assert root / paths.CATALOGUE  # the entry `other`, which is wrong, is not looked at


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_catalogue_of_this_project(
    root: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "params.yaml").write_text(f"fetch: {{dataset: {name}}}\n")
    monkeypatch.setattr(paths, "CATALOGUE", ROOT / paths.CATALOGUE)
    dataset = catalogue.selected()
    assert len(dataset.classes) == 10
    assert set(dataset.files) == set(catalogue.FILE_NAMES)
    # 60,000 and 10,000 images of 28 x 28 behind 16 bytes, labels behind 8.
    assert [dataset.files[file].size for file in catalogue.FILE_NAMES] == [
        16 + 60_000 * 784,
        8 + 60_000,
        16 + 10_000 * 784,
        8 + 10_000,
    ]


def test_unknown_data_set(root: Path) -> None:
    (root / "params.yaml").write_text("fetch: {dataset: x}\n")
    assert message(root) == "params.yaml: fetch.dataset must be one of digits, other, got 'x'"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "params.yaml: must be a mapping of sections, but is empty"),
        ("train: {}", "params.yaml: fetch is missing"),
        ("fetch:", "params.yaml: fetch is missing"),
        ("fetch: {}", "params.yaml: fetch.dataset is missing"),
        ("fetch: {dataset: 1}", "params.yaml: fetch.dataset must be a valid string, got 1"),
        ("fetch: {dataset: [", "params.yaml: not valid YAML"),
        ("fetch: {dataset: digits, dataset: other}", 'found duplicate key "dataset"; correct it'),
        ("fetch: {dataset: other}", "data/datasets.yaml: other is missing"),
    ],
)
def test_choice_that_is_not_valid(root: Path, text: str, why: str) -> None:
    (root / "params.yaml").write_text(text)
    assert why in message(root)


def test_no_catalogue(root: Path) -> None:
    (root / "data/datasets.yaml").unlink()
    assert "data/datasets.yaml: not found" in message(root)


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/passwd", "a/b", "..", ".", "", "train-images-idx3-ubyte.gz", "other"]
)
def test_file_name_with_a_path_or_not_one_of_the_four(root: Path, name: str) -> None:
    def change(entry: dict[str, Any]) -> None:
        entry["files"][name] = entry["files"].pop(IMAGES)

    why = message(root, change)
    assert f"data/datasets.yaml: digits.files.{name}.[key] must be '{IMAGES}', " in why


def test_missing_file(root: Path) -> None:
    why = message(root, lambda entry: entry["files"].pop(IMAGES))
    assert why == f"data/datasets.yaml: digits.files.{IMAGES} is missing"


def test_duplicate_file_names(root: Path) -> None:
    path = root / "data/datasets.yaml"
    text = yaml.safe_dump({"digits": ENTRY})
    again = f"    '{IMAGES}': {{size: 1, sha256: {SHA256}}}\n"  # quoted, yet the same key
    path.write_text(text.replace("  files:\n", "  files:\n" + again))
    why = message(root)
    assert why.startswith("data/datasets.yaml: not valid YAML in line ")
    assert why.endswith(f'found duplicate key "{IMAGES}"; correct it')


def test_duplicate_data_sets(root: Path) -> None:
    path = root / "data/datasets.yaml"
    path.write_text(path.read_text() * 2)
    assert message(root).endswith('found duplicate key "digits"; correct it')


def test_keys_that_are_no_text(root: Path) -> None:
    (root / "data/datasets.yaml").write_text("? [digits]\n: 1\n")
    assert "fetch.dataset must be one of ('digits',), got 'digits'" in message(root)


def test_merge_keys_may_be_overridden(root: Path) -> None:
    text = yaml.safe_dump({"base": ENTRY}).replace("base:", "base: &base")
    (root / "data/datasets.yaml").write_text(text + "digits:\n  <<: *base\n  title: Mine\n")
    assert catalogue.selected().title == "Mine"


@pytest.mark.parametrize(
    "sha256", [SHA256[:-1], SHA256 + "0", SHA256.upper(), SHA256 + "\n", "g" * 64, "", 0, None]
)
def test_malformed_checksum(root: Path, sha256: Any) -> None:
    why = message(root, lambda entry: entry["files"][IMAGES].update(sha256=sha256))
    assert f"data/datasets.yaml: digits.files.{IMAGES}.sha256 " in why


@pytest.mark.parametrize("size", [0, -1, 1.5, "10", True, None])
def test_malformed_size(root: Path, size: Any) -> None:
    why = message(root, lambda entry: entry["files"][IMAGES].update(size=size))
    assert f"data/datasets.yaml: digits.files.{IMAGES}.size must be " in why


@pytest.mark.parametrize(
    "mirror",
    [
        "ftp://mirror.example/",
        "file://data/",
        "file:data/",
        "s3://bucket/",
        "http://",
        "http:///data/",
        "https://[broken/",
        "http://mirror.example:port/",
        "http://mirror.example:99999/",
        "http://mirror.example/\ndata/",
        "http://mirror .example/",
        "",
        "folder\0name",
    ],
)
def test_mirror_of_an_unknown_scheme_or_none(root: Path, mirror: str) -> None:
    why = message(root, lambda entry: entry["mirrors"].append(mirror))
    assert why == "data/datasets.yaml: digits.mirrors.2 must be an http(s) address or a folder"


@pytest.mark.parametrize(
    "mirror",
    [
        "http://a",
        "https://a:1/b",
        "HTTP://a/",
        "http://[::1]/",
        "https://me:secret@a/",
        "/abs",
        "rel",
        "../up",
        "a b",
        "~/scans/",
        "$HOME/scans/",
        "file:///data/",
        "file:/data/",
        "file://localhost/data/",
    ],
)
def test_mirror_that_is_fine(root: Path, mirror: str) -> None:
    entry = ENTRY | {"mirrors": [mirror]}
    (root / "data/datasets.yaml").write_text(yaml.safe_dump({"digits": entry}))
    assert catalogue.selected().mirrors == [mirror]


@pytest.mark.parametrize(
    ("mirror", "expected"),
    [
        ("http://a/~/$HOME/", None),
        ("HTTPS://a/", None),
        ("data/mirror", "data/mirror"),
        ("/data/a b", "/data/a b"),
        ("~/scans/", "/home/me/scans"),
        ("$HOME/scans/", "/home/me/scans"),
        ("${HOME}/scans", "/home/me/scans"),
        ("$NOWHERE/scans", "$NOWHERE/scans"),
        ("~no-such-user/scans", "~no-such-user/scans"),
        ("file:///data/a%20b/", "/data/a b"),
        ("file://localhost/data/", "/data"),
        ("file:/data/", "/data"),
    ],
)
def test_folder_of_a_mirror(
    mirror: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("NOWHERE", raising=False)
    assert catalogue.folder(mirror) == (expected and Path(expected))


@pytest.mark.parametrize(
    "name", ["Œuf dur", "二", "क्\u200dष", "می\u200cبینم", "👩\u200d🚀", "$x$", "ß\xa0"]
)
def test_names_in_any_script_are_fine(root: Path, name: str) -> None:
    entry = ENTRY | {"title": name, "classes": [name, "other"]}
    (root / "data/datasets.yaml").write_text(yaml.safe_dump({"digits": entry}))
    assert catalogue.selected().classes == [name, "other"]


@pytest.mark.parametrize("key", ["title", "classes.1"])
@pytest.mark.parametrize(
    "name",
    [
        "two\nlines",
        "a\ttab",
        "\x1b[31m",
        "a\x7f",
        "line\u2028",
        "\u2029",
        "\u202eodd",
        "\r",
        "\ufeffa",
    ],
)
def test_names_that_cannot_be_printed_in_a_line(root: Path, key: str, name: str) -> None:
    change = {"title": name} if key == "title" else {"classes": ["a", name]}
    found = message(root, lambda entry: entry.update(change))
    why = f"must be a line of printable characters, got {name!a}"
    assert found == f"data/datasets.yaml: digits.{key} {why}"


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("mirrors", "ftp://me:secret@mirror.example/", "digits.mirrors must be a valid list"),
        ("mirrors", [], "digits.mirrors "),
        ("mirrors", "data/mirror", "digits.mirrors must be a valid list"),
        ("classes", [], "digits.classes "),
        ("classes", ["a", "a"], "digits.classes must be distinct"),
        ("classes", ["a", ""], "digits.classes.1 "),
        ("classes", [0, 1], "digits.classes.0 must be a valid string, got 0"),
        ("files", {}, f"digits.files.{IMAGES} is missing"),
        ("files", [], "digits.files must be a valid dictionary"),
        ("title", None, "digits.title must be a valid string"),
        ("colour", "red", "digits.colour is not a known key"),
    ],
)
def test_entry_that_is_not_valid(root: Path, key: str, value: Any, why: str) -> None:
    assert f"data/datasets.yaml: {why}" in message(root, lambda entry: entry.update({key: value}))


@pytest.mark.parametrize("key", list(ENTRY))
def test_entry_that_lacks_a_key(root: Path, key: str) -> None:
    assert message(root, lambda entry: entry.pop(key)).endswith(f"digits.{key} is missing")


# --- verify -----------------------------------------------------------------------------------


def described(content: bytes) -> catalogue.File:
    return catalogue.File(size=len(content), sha256=hashlib.sha256(content).hexdigest())


def test_verify_accepts_the_file_that_is_described(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"right" * 100_000)
    catalogue.verify(path, described(b"right" * 100_000))


def test_verify_names_the_file_both_hashes_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"wrong")
    with pytest.raises(StageError) as error:
        catalogue.verify(path, described(b"right"))
    found, expected = (hashlib.sha256(text).hexdigest() for text in (b"wrong", b"right"))
    advice = "delete it, then run `dvc repro --force fetch`"
    assert str(error.value) == f"{path}: SHA-256 is {found}, not {expected}; {advice}"


def test_verify_names_both_sizes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"wrong size")
    with pytest.raises(StageError, match=re.escape(f"{path}: has 10 bytes, not 5; delete it")):
        catalogue.verify(path, described(b"right"))
