"""README.md, CONTRIBUTING.md and docs/ against what they speak of."""

import json
import re
import statistics
import subprocess
from typing import Any

import numpy as np
import pytest
import yaml
from project import ROOT, Project, small_images

from benchmarks import compare
from benchmarks.seeds import RECIPES
from stages.dataset.idx import write_idx
from stages.model import devices

PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
RESULTS: dict[str, Any] = {
    file.stem: json.loads(file.read_text()) for file in (ROOT / "benchmarks/results").glob("*.json")
}


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    """Return the blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text(page), re.MULTILINE | re.DOTALL)


def accuracy(name: str) -> str:
    """Return what pages say of the test accuracy of a recipe, from its results."""
    mean, deviation = (RESULTS[name]["summary"]["test"][key] for key in ("mean", "deviation"))
    return f"{mean:.4f} ± {deviation:.4f} ({len(RESULTS[name]['runs'])} seeds)"


def processor(name: str) -> str:
    return str(RESULTS[name]["machine"]["processor"]).partition(" (")[0]


def has(page: str, *lines: str) -> None:
    for line in lines:
        assert line in text(page).splitlines(), f"{page} must have this line:\n{line}"


# Figures


def test_readme_has_the_figures_that_were_measured() -> None:
    measured, machine = RESULTS["compare"]["measured"], RESULTS["compare"]["machine"]
    ours, notebook, steps, pytorch = (
        statistics.median(measured[name])
        for name in (
            "pipeline, seconds",
            "notebook, seconds",
            "pipeline float32, images/s in steps",
            "PyTorch float32, images/s in steps",
        )
    )
    has(
        "README.md",
        f"| test accuracy, one epoch | {accuracy('seeds')} | the tutorial it grew from: 0.9708 "
        f"reported, {accuracy('seeds-tutorial')} measured here |",
        f"| seconds from archives to figures | {ours:.0f} | {notebook:.0f}: the tutorial's "
        "notebook as one script |",
        f"| images a second in training steps | {steps:,.0f} | {pytorch:,.0f}: the same network in "
        "PyTorch |",
        f"The last two are medians of {RESULTS['compare']['runs']} runs in float32 on "
        f"{machine['cores']} cores of {processor('compare')}, tensorflow {machine['tensorflow']}, "
        f"keras {machine['keras']};",
    )


def test_readme_shows_what_the_committed_run_printed() -> None:
    def committed(name: str) -> dict[str, Any]:
        # From Git: `make repro` on another CPU model may change the files that are here.
        command = ["git", "show", f":metrics/{name}.json"]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        return dict(json.loads(result.stdout))

    metrics, training = committed("metrics"), committed("training")
    parts = (
        f"{split} accuracy {values['accuracy']:.4f}, loss {values['loss']:.4f}"
        for split, values in training.items()
    )
    has(
        "README.md",
        "; ".join(parts),
        f"test accuracy {metrics['accuracy']:.4f}: {metrics['mismatches']} of "
        f"{metrics['images']:,} misclassified, loss {metrics['loss']:.4f}",
        f"5 figures in metrics/figures: {metrics['mismatches']} misclassified images",
    )


@pytest.mark.parametrize(
    ("name", "recipe", "command"),
    [
        ("seeds-tutorial", "the tutorial's, here", "--recipe tutorial --seeds 3"),
        ("seeds", "default, one epoch", ""),
        ("seeds-two-devices", "default, on two devices", "--recipe two-devices --seeds 3"),
        ("seeds-long", "longer, 14 epochs", "--recipe long --seeds 3"),
    ],
)
def test_results_have_the_accuracies_that_were_measured(
    name: str, recipe: str, command: str
) -> None:
    seconds = f"{RESULTS[name]['summary']['seconds']['mean']:.0f} s"
    command = f"python -m benchmarks.seeds {command}" if command else "make seeds"
    has(
        "docs/results.md",
        f"| {recipe} | {accuracy(name)} | {seconds} | {processor(name)} | `{command}` |",
    )


def test_results_have_the_speeds_that_were_measured() -> None:
    has("docs/results.md", *compare.table(RESULTS["compare"]["measured"]))
    [used] = [line for line in text("docs/results.md").splitlines() if line.startswith("On an ")]
    assert used.startswith(f"On an {processor('compare')}. ")


@pytest.mark.parametrize("name", RESULTS)
def test_results_name_the_machines(name: str) -> None:
    machine = RESULTS[name]["machine"]
    has("docs/results.md", "- " + "; ".join(f"{key} {value}" for key, value in machine.items()))


@pytest.mark.parametrize("page", PAGES)
def test_no_page_has_another_accuracy(page: str) -> None:
    said = re.findall(r"0\.\d{4} ± 0\.\d{4} \(\d+ seeds\)", text(page))
    assert set(said) <= {accuracy(name) for name in RESULTS if name.startswith("seeds")}


@pytest.mark.parametrize("recipe", ["tutorial", "long"])
def test_results_give_the_recipes_that_were_measured(recipe: str) -> None:
    page = " ".join(text("docs/results.md").replace("\\\n", "").split())
    command = "dvc exp run " + " ".join(f"-S {setting}" for setting in RECIPES[recipe])
    assert command in page


@pytest.mark.parametrize("page", ["README.md", "docs/scale.md"])
def test_pages_say_how_much_one_device_and_two_differ(page: str) -> None:
    two = RESULTS["seeds-two-devices"]["runs"]
    pairs = zip(RESULTS["seeds"]["runs"], two, strict=False)  # there are more seeds of one device
    differences = [abs(one["test"] - other["test"]) for one, other in pairs]
    said = f"differed by at most {max(differences):.4f} ({len(two)} seeds)"
    assert said in " ".join(text(page).split())


def test_determinism_has_what_the_emulated_cpus_showed() -> None:
    for emulator, same in RESULTS["other_cpu"]["same"].items():
        native, portable = (list(same[setting].values()) for setting in ("native", "portable"))
        assert all(portable)
        assert not all(native)  # so that the comparison is one
        differ = (
            f"{found.count(False)} of {len(found)} files differ" for found in (native, portable)
        )
        has("docs/determinism.md", f"| `{emulator}` | {' | '.join(differ)} |")


# What pages name


def test_readme_is_short() -> None:
    assert len(text("README.md").split()) < 900


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", text(page)):
        if not link.startswith(("http://", "https://")):
            path, _, fragment = link.partition("#")
            target = (ROOT / page).parent / path if path else ROOT / page
            assert target.exists(), link
            if fragment:
                headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
                assert fragment in map(anchor, headings), link


def test_readme_shows_files_that_are_there() -> None:
    [tree] = [block for block in blocks("README.md", "text") if "dvc.yaml" in block]
    for line in tree.splitlines():
        assert (ROOT / line.split()[0]).exists(), line


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_make_targets_and_parameters_that_exist(page: str) -> None:
    targets = set(re.findall(r"^([\w./-]+):", text("Makefile"), re.MULTILINE))
    named = re.findall(r"(?:^\$ |`)make (?:--?\S+ |[A-Z]+=\S+ )*([a-z][\w-]*)", text(page), re.M)
    assert set(named) <= targets
    known = yaml.safe_load(text("params.yaml"))
    inline = re.sub(r"^```.*?^```$", "", text(page), flags=re.MULTILINE | re.DOTALL)
    code = re.findall(r"`[^`\n]+`", inline) + blocks(page, "(?:console|bash)")
    found = re.findall(
        rf"\b({'|'.join(known)})\.(?!py\b)([a-z_]+)\b(?! is not a known)", " ".join(code)
    )
    for section, key in found:
        assert key in known[section], f"{section}.{key}"


def test_troubleshooting_quotes_our_messages() -> None:
    code = text("Makefile") + "".join(
        file.read_text() for folder in ("stages", "tools") for file in (ROOT / folder).rglob("*.py")
    )
    code = re.sub(r'"\s+f?"', "", code)  # a message may go over several lines
    quoted = re.findall(
        r"^\| `((?:error:|warning:|…).*?)` \|", text("docs/troubleshooting.md"), re.M
    )
    assert len(quoted) >= 10
    for message in quoted:
        words = re.findall(r"(?<![.\w])[a-zA-Z]+(?: [a-zA-Z]+\b(?!-)){2,}", message)
        assert all(part in code for part in words), message


# Commands and files that users copy


def test_the_model_card_loads_the_model_and_trains_it_on(
    reproduced: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(reproduced.path)
    tensors = (np.load(f"data/tensors/train_{name}.npy") for name in ("images", "labels"))
    known = dict(zip(("images", "labels"), tensors, strict=True))
    load, train = blocks("docs/model-card.md", "python")
    exec(load, known)
    before = known["model"].get_weights()
    assert known["probabilities"].shape == (120, 3)
    exec(train, known)
    after = known["model"].get_weights()
    assert all((old != new).any() for old, new in zip(before, after, strict=True))


def test_readme_and_scale_start_slurm_alike() -> None:
    [command] = [line for line in text("README.md").splitlines() if line.startswith("$ srun")]
    has("docs/scale.md", command)


def test_tf_config_in_scale_is_understood() -> None:
    for index, example in enumerate(re.findall(r"TF_CONFIG='(.*)'", text("docs/scale.md"))):
        assert devices._read_config(example) == (["host1:20000", "host2:20000"], index)
    assert index == 1


def test_a_data_set_added_as_the_page_says(project: Project) -> None:
    folder = project.path / "data/mirror/mine"
    folder.mkdir()
    for prefix, count in (("train", 150), ("t10k", 60)):
        images, labels = small_images(count, seed=count)
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", labels)
    [commands] = [block for block in blocks("docs/data.md", "bash") if "sha256sum" in block]
    files = project.run("bash", "-euc", commands)
    [entry] = [block for block in blocks("docs/data.md", "yaml") if "mine:" in block]
    [before, _] = entry.split("  files:\n")
    with (project.path / "data/datasets.yaml").open("a") as catalogue:
        catalogue.write("\n" + before + "  files:\n" + files)
    project.set_params({"fetch": {"dataset": "mine"}})
    project.stage("fetch")
    assert "120 train, 30 validation, 60 test images" in project.stage("preprocess")
