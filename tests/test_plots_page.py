"""The page of `dvc plots diff`, opened in a real browser that has no network."""

import csv
import re
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import vl_convert
from project import Project

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed"),
]

TITLES = ("Loss", "Accuracy", "Learning rate", "F1 of each class", "Confusion matrix")

# A browser draws on a canvas, which a test cannot read: ask for SVG, and for the images' sizes.
OBSERVER = """
window.vegaEmbed = (id, spec) => vegaEmbed(id, spec, {renderer: "svg"});
window.addEventListener("load", () => {
    for (const image of document.images) image.dataset.width = image.naturalWidth;
});
"""


def open_page(page: Path) -> str:
    """Return what a browser makes of the page: its DOM, as HTML, after all scripts."""
    flags = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"]
    flags += ["disable-background-networking", "disable-component-update", "disable-sync"]
    flags += ["host-resolver-rules=MAP * ~NOTFOUND", "virtual-time-budget=20000", "dump-dom"]
    # Chromium makes a socket in there, and the path of a socket has 107 characters at most.
    with TemporaryDirectory(dir="/tmp", prefix="chromium-", ignore_cleanup_errors=True) as folder:
        flags.append(f"user-data-dir={folder}/profile")
        return subprocess.run(
            ["chromium", *(f"--{flag}" for flag in flags), page.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
            env={"HOME": folder, "TMPDIR": folder},
        ).stdout


@pytest.fixture
def compared(finished: Project) -> Project:
    """A project whose workspace and last commit differ in their history and in a count."""
    (finished.path / "metrics/history.csv").write_text(
        "step,epoch,images_seen,loss,accuracy,learning_rate,validation_loss,validation_accuracy\n"
        "20,1,320,1.39,0.5,0.001,,\n"
        "40,1,640,0.75,0.75,0.002,0.5,0.875\n"
        "60,2,960,0.25,0.9,0.001,,\n"
        "80,2,1280,0.2,0.95,0,0.125,0.925\n"
    )
    confusion = finished.path / "metrics/confusion.csv"
    lines = confusion.read_text().splitlines()
    lines[1] = "circle,circle,77"
    confusion.write_text("\n".join(lines) + "\n")
    return finished


def rows_of(project: Project, name: str, revision: str) -> list[dict[str, str]]:
    if revision == "workspace":
        text = (project.path / "metrics" / name).read_text()
    else:
        text = project.git("show", f"{revision}:metrics/{name}")
    return list(csv.DictReader(text.splitlines()))


def points(svg: str, axis: str) -> list[tuple[str, str, float, float]]:
    """Return revision, series, x and y of each point that is drawn."""
    label = rf'aria-label="step: (\S+); {axis}: (\S+); rev: (\w+); field: (\w+);'
    found = re.findall(label, svg)
    # A line bears its first point's label, too.
    return sorted({(rev, series, float(x), float(y)) for x, y, rev, series in found})


def test_curves_matrix_and_images_are_drawn_without_a_network(compared: Project) -> None:
    (compared.path / ".venv").mkdir()
    bundle = vl_convert.javascript_bundle(OBSERVER, vl_version="5.8")
    (compared.path / ".venv/vega.js").write_text(bundle)
    compared.dvc("plots", "diff", "HEAD")
    page = compared.path / "dvc_plots/index.html"
    assert page.stat().st_size < 100_000
    dom = open_page(page)
    plots = {}
    for svg in re.findall(r"<svg.*?</svg>", dom, re.DOTALL):
        for title in TITLES:
            if f">{title}</text>" in svg:
                assert title not in plots  # declared twice, it would be drawn twice
                plots[title] = svg
    assert set(plots) == set(TITLES)

    for title, series in (("Loss", "loss"), ("Accuracy", "accuracy")):
        assert points(plots[title], series) == sorted(
            (revision, name, float(row["step"]), float(row[name]))
            for revision in ("workspace", "HEAD")
            for row in rows_of(compared, "history.csv", revision)
            for name in (series, f"validation_{series}")
            if row[name]
        )
    assert ">workspace</text>" in plots["Learning rate"]

    cells = r'aria-label="predicted: (\w+); actual: (\w+); mistakes: (\d+); count: (\d+)"'
    assert sorted(re.findall(cells, plots["Confusion matrix"])) == sorted(
        (
            row["predicted"],
            row["actual"],
            "0" if row["predicted"] == row["actual"] else row["count"],
            row["count"],
        )
        for revision in ("workspace", "HEAD")
        for row in rows_of(compared, "confusion.csv", revision)
    )

    images = re.findall(r'<img src="[^"]*" data-width="(\d+)"', dom)
    assert len(images) == 2 * 5
    assert all(int(width) > 100 for width in images)


def test_without_the_library_the_page_says_what_is_missing(compared: Project) -> None:
    compared.dvc("plots", "diff", "HEAD")
    dom = open_page(compared.path / "dvc_plots/index.html")
    assert dom.count("This curve needs a network, or a copy of DVC's plotting library: ") == len(
        TITLES
    )
    assert "cdn.jsdelivr.net" in dom  # it was tried
    assert len(re.findall("<img ", dom)) == 2 * 5
