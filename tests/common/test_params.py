"""params.yaml is validated before any work, by every stage."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.utils.serialize import load_yaml
from project import Project

from stages import evaluate, plot, preprocess, train
from stages.common import params, paths
from stages.common.errors import StageError

OWNERS: dict[str, type[params.Section]] = {
    "preprocess": preprocess.PreprocessParams,
    "train": train.TrainParams,
    "evaluate": evaluate.EvaluateParams,
    "plot": plot.PlotParams,
}


def message(section: str, text: str, tmp_path: Path) -> str:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(StageError) as error:
        params.load(section, OWNERS[section], path)
    return str(error.value).replace(str(path), "params.yaml")


def with_value(section: str, key: str, value: str) -> str:
    content = yaml.safe_load(paths.PARAMS.read_text())
    content[section][key] = "VALUE"
    return yaml.safe_dump(content).replace("VALUE", value)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("train.batch_size", "64.5", "must be a valid integer, got 64.5"),
        ("train.batch_size", "'64'", "must be a valid integer, got '64'"),
        ("train.batch_size", "true", "must be a valid integer, got True"),
        ("train.batch_size", "null", "must be a valid integer, got None"),
        ("train.learning_rate", ".nan", "must be a finite number, got nan"),
        ("train.learning_rate", "-.inf", "must be a finite number, got -inf"),
        ("train.precision", "float16", "must be 'float32' or 'mixed_bfloat16', got 'float16'"),
        ("preprocess.validation_size", "-1", "must be greater than or equal to 0, got -1"),
        ("preprocess.max_images", "-1", "must be greater than or equal to 0, got -1"),
        ("preprocess.seed", "-1", "must be greater than or equal to 0, got -1"),
        ("evaluate.threads", "0", "must be greater than or equal to 1, got 0"),
        ("plot.seed", "4294967296", "must be less than 4294967296, got 4294967296"),
    ],
)
def test_a_bad_value_is_named_with_what_was_expected(
    key: str, value: str, expected: str, tmp_path: Path
) -> None:
    section, name = key.split(".")
    found = message(section, with_value(section, name, value), tmp_path)
    assert found == f"params.yaml: {key} {expected}"


@pytest.mark.parametrize("section", OWNERS)
def test_unknown_and_missing_keys(section: str, tmp_path: Path) -> None:
    content: dict[str, Any] = yaml.safe_load(paths.PARAMS.read_text())
    content[section]["sede"] = 1
    found = message(section, yaml.safe_dump(content), tmp_path)
    assert found == f"params.yaml: {section}.sede is not a known key; check its spelling"
    del content[section]["sede"]
    key = next(iter(content[section]))
    del content[section][key]
    found = message(section, yaml.safe_dump(content), tmp_path)
    assert found == f"params.yaml: {section}.{key} is missing"
    del content[section]
    assert (
        message(section, yaml.safe_dump(content), tmp_path) == f"params.yaml: {section} is missing"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "must be a mapping of sections, but is empty"),
        ("- 1", "must be a mapping of sections, but is a list"),
        ("train:\n  seed: [1", "not valid YAML in line 2: "),
        ("train:\n  seed: 1\n\t", "not valid YAML in line 3: "),
        ("train: 1\x00", "not valid YAML: "),
        ("seed: !!int x", "not valid YAML: "),
        (
            "train:\n  seed: 1\n  seed: {a: 2}\n",
            'not valid YAML in line 3: found duplicate key "seed" with',
        ),
        ("train: 5", "train must be a valid dictionary"),
    ],
)
def test_broken_files(text: str, expected: str, tmp_path: Path) -> None:
    assert message("train", text, tmp_path).startswith(f"params.yaml: {expected}")


def test_a_missing_file_and_a_file_that_is_not_text(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="not found; run from the root of the repository"):
        params.read_yaml(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"a: \xff")
    with pytest.raises(StageError, match="not valid YAML: 'utf-8' codec can't decode byte 0xff"):
        params.read_yaml(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    "text", ["1e-3", ".1e-2", "yes", "010", "1_000", "1:30", "0o17", "~", "12e03", ".5"]
)
def test_values_are_read_as_dvc_reads_them(text: str, tmp_path: Path) -> None:
    # PyYAML would read 1e-3 as text, `yes` as true, 010 as 8 and 1:30 as 90.
    path = tmp_path / "params.yaml"
    path.write_text(f"key: {text}\n")
    assert params.read_yaml(path) == load_yaml(path)


@pytest.mark.slow
def test_an_experiment_changes_one_line(tmp_path: Path) -> None:
    """What `dvc exp run -S` does: DVC reads the file and writes it."""
    from dvc.utils.hydra import apply_overrides  # takes half a second

    path, text = tmp_path / "params.yaml", paths.PARAMS.read_text()
    for section, values in params.read_yaml(paths.PARAMS).items():
        for key, value in values.items():
            new = f"{value}x" if isinstance(value, str) else value + 1
            path.write_text(text)
            apply_overrides(path, [f"{section}.{key}={new}"])
            lines = zip(text.splitlines(), path.read_text().splitlines(), strict=True)
            [(old, changed)] = [(before, after) for before, after in lines if before != after]
            assert old.lstrip().startswith(f"{key}: ")
            assert changed.partition(" #")[0].rstrip() == f"  {key}: {new}"
            assert changed.partition(" #")[2] == old.partition(" #")[2]


def test_the_stages_end_in_one_line_before_they_work(project: Project) -> None:
    sections: dict[str, tuple[str, object, str]] = {
        "fetch": ("dataset", "mnisty", "must be one of fashion-mnist, mnist, small, got 'mnisty'"),
        "preprocess": ("validation_size", 1.5, "must be a valid integer, got 1.5"),
        "train": ("epochs", "many", "must be a valid integer, got 'many'"),
        "evaluate": ("batch_size", 0, "must be greater than or equal to 1, got 0"),
        "plot": ("seed", -1, "must be greater than or equal to 0, got -1"),
    }
    original = (project.path / "params.yaml").read_text()
    for stage, (key, value, expected) in sections.items():
        project.set_params({stage: {key: value}})
        printed = project.stage(stage, status=1)
        assert printed == f"error: params.yaml: {stage}.{key} {expected}\n"
        (project.path / "params.yaml").write_text(original)
    assert sorted(path.name for path in (project.path / "data").iterdir()) == [
        "datasets.yaml",
        "mirror",
    ]
    assert not (project.path / "metrics").exists()
