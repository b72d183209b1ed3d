"""The figures show what they should, whatever the predictions are."""

import io
from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from conftest import Project
from matplotlib.backends.backend_agg import FigureCanvasAgg

from stages import plot

CLASSES = ["Ankle boot", "T-shirt/top", "NA"]


def table(count: int, wrong: int) -> pd.DataFrame:
    """Return predictions of `count` images, the first `wrong` of them mistaken."""
    names = np.array(CLASSES)
    actual = np.arange(count) % 3
    predicted = np.where(np.arange(count) < wrong, (actual + 1) % 3, actual)
    return pd.DataFrame(
        {
            "actual": names[actual],
            "predicted": names[predicted],
            "confidence": np.linspace(0.5, 1, count),
        }
    )


def stripes(count: int) -> np.ndarray:
    """Return images (N, 9, 9, 1), each with as many dark rows as its index modulo 9."""
    images = np.zeros((count, 9, 9, 1), np.uint8)
    for index, image in enumerate(images):
        image[: index % 9] = 255
    return images


@pytest.mark.parametrize(("wrong", "shown"), [(0, 0), (1, 1), (9, 9), (10, 10), (25, 10)])
def test_a_grid_shows_up_to_ten_images_with_their_own_titles(wrong: int, shown: int) -> None:
    predictions = table(30, wrong)
    mistaken = predictions[predictions["actual"] != predictions["predicted"]]
    figure = plot.grid(stripes(30), mistaken, "misclassified", seed=1)
    assert figure.get_suptitle() == (
        f"misclassified: {shown} of {wrong}" if shown else "misclassified: none"
    )
    drawn = [axes for axes in figure.axes if axes.images]
    assert len(drawn) == shown
    titles = {
        f"predicted {row.predicted}\ntrue {row.actual}\nconfidence {row.confidence:.1%}": index
        for index, row in zip(mistaken.index, mistaken.itertuples(), strict=True)
    }
    for axes in drawn:
        pixels = np.asarray(axes.images[0].get_array())
        assert (pixels == stripes(30)[titles.pop(axes.get_title()), ..., 0]).all()


def test_cells_without_an_image_stay_blank() -> None:
    figure = plot.grid(stripes(30), table(30, 0).iloc[:0], "misclassified", seed=1)
    drawn = io.BytesIO()
    figure.savefig(drawn)
    pixels = matplotlib.image.imread(io.BytesIO(drawn.getvalue()))[..., :3]
    ink = np.flatnonzero((pixels < 1).any(axis=(1, 2)))
    assert 0 < ink.max() < 0.1 * len(pixels)  # nothing but the title


def test_the_seed_chooses_the_images() -> None:
    titles = [
        [axes.get_title() for axes in plot.grid(stripes(90), table(90, 0), "", seed).axes]
        for seed in (0, 0, 1)
    ]
    assert titles[0] == titles[1] != titles[2]


def test_the_confusion_matrix_counts() -> None:
    predictions = table(30, 7)
    figure = plot.confusion(predictions, CLASSES)
    counts = {
        (
            CLASSES[int(text.get_position()[1])],
            CLASSES[int(text.get_position()[0])],
        ): text.get_text()
        for text in figure.axes[0].texts
    }
    expected = predictions.groupby(["actual", "predicted"]).size()
    assert counts == {pair: str(count) for pair, count in expected.items()}


def test_the_first_training_image_bears_its_name() -> None:
    figure = plot.sample(stripes(2)[1], "Bag")
    assert figure.axes[0].get_title() == "first training image: Bag"


def texts_overlap(path: Path) -> bool:
    """Tell whether ink touches the border of a figure: a text that was cut off."""
    pixels = matplotlib.image.imread(path)[..., :3].mean(axis=2)
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return bool((border < 0.9).any())


def test_figures_of_the_pipeline(reproduced: Project) -> None:
    paths = sorted((reproduced.path / "metrics/figures").iterdir())
    names = ["confusion", "match", "mismatch", "sample", "training"]
    assert [path.stem for path in paths] == names
    for path in paths:
        assert path.stat().st_size < 150_000
        height, width = matplotlib.image.imread(path).shape[:2]
        assert 200 <= height <= 1200
        assert 200 <= width <= 1200
        assert not texts_overlap(path)
        assert b"matplotlib" not in path.read_bytes()


def test_titles_do_not_overlap_with_long_class_names() -> None:
    predictions = table(30, 0).replace({"NA": "a rather long name"})
    figure = plot.grid(stripes(30), predictions, "correctly classified", seed=0)
    FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]
    boxes = [axes.title.get_window_extent() for axes in figure.axes]
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])


def test_the_users_matplotlib_settings_do_not_reach_the_figures(
    finished: Project, tmp_path: Path
) -> None:
    (tmp_path / "matplotlibrc").write_text("axes.facecolor: red\nfont.size: 30\nsavefig.dpi: 50\n")
    finished.stage("plot", env={"MATPLOTLIBRC": str(tmp_path)})
    assert finished.git("status", "--porcelain", "metrics") == ""


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("predictions.csv", None, "not found; run `dvc repro`"),
        ("predictions.csv", "", "not a table: No columns to parse from file"),
        ("predictions.csv", "a,b\n1,2\n", "lacks the column(s) actual, confidence, predicted"),
        ("predictions.csv", "actual,predicted,confidence\n7,7,1\n", "must have a row for each of"),
        ("history.csv", "step\n1\n", "lacks the column(s) accuracy, loss"),
        ("history.csv", None, "not found; run `dvc repro`"),
    ],
)
def test_tables_that_cannot_be_drawn(
    name: str, content: str | None, expected: str, finished: Project
) -> None:
    path = finished.path / "metrics" / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    printed = finished.stage("plot", status=1)
    assert printed.startswith(f"error: metrics/{name}: ")
    assert expected in printed
    assert printed.count("\n") == 1
    assert finished.git("status", "--porcelain", "metrics/figures") == ""
