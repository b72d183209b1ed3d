"""The figures show what they should, whatever the predictions are."""

import re
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from project import Project

from stages import plot
from stages.common.errors import StageError
from stages.figures import drawing, names

CLASSES = ["Ankle boot", r"$\no formula$", "NA"]


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """Let no test change matplotlib's settings for the next, nor warn of glyphs without a font."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def mistakes(count: int, classes: list[str] = CLASSES) -> pd.DataFrame:
    """Return predictions of `count` images, each with its own confidence."""
    names, actual = np.array(classes), np.arange(count) % len(classes)
    confidence = np.linspace(0.5, 1, count)
    return pd.DataFrame(
        {"actual": names[actual], "predicted": names[actual - 1], "confidence": confidence}
    )


def noise(count: int) -> np.ndarray:
    """Return images (N, 9, 9, 1) that differ."""
    return np.random.default_rng(0).integers(0, 256, (count, 9, 9, 1), dtype=np.uint8)


def pixels(axes: Axes) -> np.ndarray:
    """Return the only image of some axes, checked to be ink on paper and nothing but it."""
    (image,) = axes.images
    assert image.cmap.name == "gray_r"
    assert image.get_clim() == (0, 255)
    assert len(axes.get_xticks()) == len(axes.get_yticks()) == axes.get_frame_on() == 0
    return np.asarray(image.get_array())


def drawn_texts(figure: Figure) -> list[Text]:
    """Draw a figure; return its texts that are not empty."""
    FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]
    return [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


def check_that_all_is_in_the_picture(figure: Figure) -> None:
    frame = figure.bbox.padded(1)
    for text in drawn_texts(figure):
        box = text.get_window_extent()
        assert frame.fully_contains(box.x0, box.y0), text
        assert frame.fully_contains(box.x1, box.y1), text


# --- The grids and the sample ------------------------------------------------------------------


def check_grid(
    figure: Figure, title: str, images: np.ndarray, predictions: pd.DataFrame, seed: int
) -> None:
    """Check that a grid shows up to ten of the predictions, as the seed chooses them."""
    assert figure.get_suptitle() == title
    assert len(figure.axes) == 10
    shown = predictions.sample(min(10, len(predictions)), random_state=seed)
    for axes, index, row in zip(figure.axes, shown.index, shown.itertuples(), strict=False):
        assert axes.get_title() == (
            f"predicted {row.predicted}\ntrue {row.actual}\nconfidence {row.confidence:.1%}"
        )
        assert (pixels(axes) == images[index, ..., 0]).all()
    for axes in figure.axes[len(shown) :]:
        assert not axes.images
        assert len(axes.get_xticks()) == len(axes.get_yticks()) == axes.get_frame_on() == 0


@pytest.mark.parametrize(
    ("count", "title"),
    [(0, "wrong: none"), (9, "wrong: 9 of 9"), (1234, "wrong: 10 of 1,234")],
)
def test_a_grid_shows_up_to_ten_images_with_their_own_titles(count: int, title: str) -> None:
    images, wrong = noise(1300), mistakes(count)
    check_grid(drawing.grid(images, wrong, "wrong", seed=1), title, images, wrong, seed=1)


# --- The confusion matrix ----------------------------------------------------------------------


def test_the_confusion_matrix_counts(tmp_path: Path) -> None:
    pairs = {(0, 0): 5, (0, 1): 4, (0, 2): 1, (2, 0): 9}  # by rows and columns
    rows = [(CLASSES[a], CLASSES[p]) for (a, p), count in pairs.items() for _ in range(count)]
    matrix = plot.count_pairs(pd.DataFrame(rows, columns=["actual", "predicted"]), CLASSES)
    figure = drawing.confusion(matrix, CLASSES)
    drawn_texts(figure)
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert axes.get_title() == "confusion matrix of the test images"
    assert axes.yaxis_inverted()
    for axis in (axes.xaxis, axes.yaxis):
        ticks = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=True)
        assert [(place, text.get_text()) for place, text in ticks] == [*enumerate(CLASSES)]
    # (x, y), which is (column, row)
    assert {
        text.get_position(): (text.get_text(), text.get_fontweight()) for text in axes.texts
    } == {
        (0, 0): ("5", "bold"),
        (1, 0): ("4", "normal"),
        (2, 0): ("1", "normal"),
        (0, 2): ("9", "normal"),
    }
    # The darker, the more mistakes; what is right is as light as what never happens.
    (image,) = axes.images
    assert np.asarray(image.get_array()).tolist() == [[0, 2, 1], [0, 0, 0], [3, 0, 0]]
    assert (image.get_clim(), image.cmap.name) == ((0, 6), "Oranges")

    path = tmp_path / "confusion.csv"
    plot.write_pairs(path, matrix, CLASSES)
    boot, dollar, na = CLASSES
    assert path.read_bytes().decode() == (
        f"actual,predicted,count\n{boot},{boot},5\n{dollar},{dollar},0\n{na},{na},0\n"
        f"{boot},{dollar},4\n{boot},{na},1\n{na},{boot},9\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "classes",
    [
        ["no", "yes"],
        ["benign keratosis-like lesions", "a name of many words that goes on and on and on", "x"],
        [f"{number} is a name that differs at its end {number}" for number in range(10)],
        [str(number) for number in range(47)],
        [f"name {number}" for number in range(26)],
    ],
    ids=lambda classes: f"{len(classes)} {classes[0][:10]}",
)
def test_any_number_of_classes_and_any_length_of_names_stays_readable(classes: list[str]) -> None:
    check_that_it_is_readable(classes)


def check_that_it_is_readable(classes: list[str]) -> None:
    count = len(classes)
    names.choose_fonts(classes)
    matrix = 3 * np.eye(count, dtype=np.int64) + np.eye(count, k=1, dtype=np.int64)
    matrix[0, 0] = 1234 if count < 40 else 12  # cells are as small as counts allow
    figure = drawing.confusion(matrix, classes)
    check_that_all_is_in_the_picture(figure)
    axes = figure.axes[0]
    assert 4 <= figure.get_figwidth() <= 60
    # The matrix has most of the picture, and a cell has room for its count.
    box = axes.get_window_extent()
    assert box.width > 0.4 * figure.bbox.width
    assert box.width == pytest.approx(box.height)
    assert len(axes.texts) == 2 * count - 1
    for text in axes.texts:
        assert text.get_window_extent().width <= box.width / count
    # Names do not touch, and each can be told from the others.
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert len({label.get_text() for label in labels}) == count
        for label, after in pairwise(labels):
            assert not label.get_window_extent().overlaps(after.get_window_extent())
            assert float(label.get_fontsize()) >= 6


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "counts"), [(200, 200), (700, 0)])
def test_counts_are_left_out_where_they_have_no_room(classes: int, counts: int) -> None:
    matrix = 1234 * np.eye(classes, dtype=np.int64)
    figure = drawing.confusion(matrix, [f"c{number}" for number in range(classes)])
    assert figure.get_figwidth() <= 60
    assert len(figure.axes[0].texts) == counts
    label = figure.axes[0].get_yticklabels()[0]
    assert float(label.get_fontsize()) < 72 * 54 / classes  # the height of a row
    # Without a mistake it is light all over.
    assert figure.axes[0].images[0].get_clim() == (0, 2)


# --- Names -------------------------------------------------------------------------------------


LONG = [
    "a name that is quite long, as those of skin lesions are",
    "BENIGN KERATOSIS-LIKE LESIONS OF THE SKIN",
    "良性角化症様病変を含む皮膚の病変のすべて",
    r"$\no formula$ in a rather long name",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_titles_of_a_grid_do_not_overlap(name: str) -> None:
    names.choose_fonts([name])
    predictions = mistakes(30, [name, f"{name}!", "x"])
    figure = drawing.grid(noise(30), predictions, "misclassified", seed=0)
    check_that_all_is_in_the_picture(figure)
    boxes = [axes.title.get_window_extent() for axes in figure.axes]
    cells = [axes.get_window_extent().shrunk(0.9, 0.9) for axes in figure.axes]
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[index + 1 :] + cells)
    check_that_all_is_in_the_picture(drawing.sample(noise(1)[0], name))


def test_names_keep_their_beginning_and_their_end() -> None:
    long = "melanoma of the kind that has stage 1"
    assert names.shorten(long, 30) == "melanoma of the kind … stage 1"
    assert names.shorten("x" * 30, 30) == "x" * 30
    for letter, fit in (("y", 30), ("Y", 22), ("犬", 15), ("\uff41", 15)):
        assert len(names.shorten(letter * 31, 30)) == fit
    assert names.wrap("predicted", "short", 26) == "predicted short"
    assert names.wrap("predicted", "benign keratosis-like lesions", 26) == (
        "predicted benign\nkeratosis-like lesions"
    )
    assert names.wrap("one", "two three four five six", 9) == "one two\nthree …"


# Characters for private use, which no font need have.
PRIVATE = "\U000f1234"


def rename_class(project: Project, old: str, new: str) -> None:
    """Name a class of the finished project otherwise, without training again."""
    for name in ("data/tensors/manifest.json", "metrics/predictions.csv"):
        path = project.path / name
        content = path.read_text(encoding="utf-8")
        path.unlink()  # it may be a link into DVC's cache
        path.write_text(content.replace(old, new), encoding="utf-8")


def test_a_character_without_a_font_is_reported_once_and_the_users_settings_change_nothing(
    finished: Project, tmp_path: Path
) -> None:
    rename_class(finished, "circle", PRIVATE)
    for folder in (tmp_path, finished.path):  # matplotlib reads one where it is started, too
        (folder / "matplotlibrc").write_text("axes.facecolor: red\nfont.size: 30\n")
    env = {"PYTHONWARNINGS": "error", "PYTHONIOENCODING": "utf-8", "MATPLOTLIBRC": str(tmp_path)}
    warning, rest = finished.stage("plot", env=env).split("\n", 1)
    assert re.fullmatch(
        f"warning: no font for {PRIVATE}: class names show boxes in the figures; install one of "
        r"Noto Sans CJK JP, .*, Arial Unicode MS, delete matplotlib's list of fonts, "
        r"\S*matplotlib\S*/fontlist-\*\.json, then run `dvc repro --force --single-item plot`",
        warning,
    )
    assert rest.startswith("5 figures in metrics/figures: ")
    assert rest.count("\n") == 1
    # Class names are in all other figures.
    assert finished.git("status", "--porcelain", "metrics/figures/training.png") == ""


def test_a_family_is_fallen_back_on_for_what_the_default_lacks(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # These come with matplotlib.
    monkeypatch.setattr(names, "FAMILIES", ["DejaVu Sans", "No font", "cmr10", "STIXGeneral"])
    names.choose_fonts(["7", "ⓝ"])
    assert matplotlib.rcParams["font.family"] == ["DejaVu Sans", "STIXGeneral"]
    assert capfd.readouterr().err == ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a missing glyph
        drawn_texts(drawing.sample(noise(1)[0], "ⓝ"))


def test_chinese_and_japanese_are_readable_in_the_fonts_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # matplotlib itself does not know of fonts that were installed a moment ago.
    noto = [path for path in font_manager.findSystemFonts() if "NotoSansCJK-Regular" in path]
    if not noto:
        pytest.skip("needs Debian's fonts-noto-cjk")
    fonts = font_manager.fontManager
    monkeypatch.setattr(fonts, "ttflist", [*fonts.ttflist])
    fonts.addfont(noto[0])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Glyph .* missing from font")
        check_that_it_is_readable([LONG[2], "基底細胞癌", "猫の手"])
    assert len(matplotlib.rcParams["font.family"]) == 1
    assert capfd.readouterr().err == ""


def test_what_the_default_font_has_needs_no_other_and_what_none_has_is_cut_short(
    capfd: pytest.CaptureFixture[str],
) -> None:
    missing = [chr(0xF1000 + number) for number in range(11)]
    shown = f"warning: no font for {' '.join(missing[:10])} ...: class names"
    for few, warning in (
        (["7", "Ω", "naïve café", "Ж", "عربى"], ""),
        (missing, shown),
        (["1"], ""),
    ):
        names.choose_fonts(few)
        assert matplotlib.rcParams["font.family"] == ["DejaVu Sans"]
        assert capfd.readouterr().err[: len(shown)] == warning


# --- The training curves -----------------------------------------------------------------------


def test_the_curves_are_those_of_the_history() -> None:
    nothing = float("nan")
    history = pd.DataFrame(
        {
            "step": [10, 20, 30, 40],
            "loss": [2.0, 1.0, 0.5, 0.25],
            "accuracy": [0.1, 0.5, 0.8, 0.9],
            "validation_loss": [nothing, 0.7, nothing, 0.3],
            "validation_accuracy": [nothing, 0.6, nothing, 0.95],
        }
    )
    figure = drawing.training(history)
    assert figure.get_suptitle() == "training"
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy"]
    for axes in figure.axes:
        name = axes.get_ylabel()
        assert axes.get_xlabel() == "step"
        legend = axes.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == ["training", "validation"]
        curve, dots = axes.lines
        for line, expected in (
            (curve, history[["step", name]]),
            (dots, history.loc[[1, 3], ["step", f"validation_{name}"]]),
        ):
            assert np.asarray(line.get_xydata()).tolist() == expected.to_numpy().tolist()
        assert curve.get_linestyle() == "-"
        assert (dots.get_linestyle(), dots.get_marker()) == ("None", "o")
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear"]
    assert figure.axes[1].get_ylim()[1] == 1

    without = history.assign(validation_loss=nothing, validation_accuracy=nothing)
    for axes in drawing.training(without).axes:
        assert [line.get_label() for line in axes.lines] == ["training"]


# --- The stage ---------------------------------------------------------------------------------


def test_figures_of_the_pipeline(reproduced: Project) -> None:
    paths = sorted((reproduced.path / "metrics/figures").iterdir())
    names = ["confusion", "match", "mismatch", "sample", "training"]
    assert [path.stem for path in paths] == names
    for path in paths:
        assert path.stat().st_size < 150_000
        assert b"matplotlib" not in path.read_bytes()
        picture = matplotlib.image.imread(path)[..., :3].mean(axis=2)
        assert 200 <= min(picture.shape) <= max(picture.shape) <= 1200
        # Ink there would be of a text that was cut off.
        assert np.concatenate([*picture[[0, -1]], *picture.T[[0, -1]]]).min() > 0.9


def test_the_stage_draws_what_it_read(
    finished: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run the stage in this process, and look at its figures as they are saved."""
    classes = ["007", "7", "NA"]
    rename_class(finished, "circle", classes[0])
    path = finished.path / "metrics/predictions.csv"
    rows: Any = pd.read_csv(path, dtype=str, keep_default_na=False).astype({"confidence": float})
    # Some mistakes at least, and the last image is one of them.
    for index in (0, 1, 59):
        right = classes.index(rows.loc[index, "actual"])
        rows.loc[index, "predicted"] = classes[(right + 1) % 3]
    rows.to_csv(path, index=False)
    finished.set_params({"plot": {"seed": 7}})
    monkeypatch.chdir(finished.path)
    saved: dict[str, Figure] = {}
    save = Figure.savefig

    def note(figure: Figure, target: Path, **options: Any) -> None:
        saved[target.stem.removeprefix(".tmp-")] = figure
        save(figure, target, **options)

    monkeypatch.setattr(Figure, "savefig", note)
    plot.main()

    tensors = {file.stem: np.load(file) for file in Path("data/tensors").glob("*.npy")}
    wrong = rows["actual"] != rows["predicted"]
    assert capsys.readouterr().out == (
        f"5 figures in metrics/figures: {wrong.sum()} misclassified images\n"
    )
    (axes,) = saved["sample"].axes
    first = classes[tensors["train_labels"][0].argmax()]
    assert axes.get_title() == f"first training image: {first}"
    assert (pixels(axes) == tensors["train_images"][0, ..., 0]).all()

    for name, title, chosen in (
        ("mismatch", "misclassified", rows[wrong]),
        ("match", "correctly classified", rows[~wrong]),
    ):
        title = f"{title}: {min(10, len(chosen))} of {len(chosen)}"
        check_grid(saved[name], title, tensors["test_images"], chosen, seed=7)

    (axes,) = saved["confusion"].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == classes
    assert sum(int(text.get_text()) for text in axes.texts) == len(rows) == 60
    history = pd.read_csv("metrics/history.csv")
    for axes in saved["training"].axes:
        assert np.asarray(axes.lines[0].get_ydata()).tolist() == history[axes.get_ylabel()].tolist()
    pairs = pd.read_csv("metrics/confusion.csv", dtype=str, keep_default_na=False)
    assert pairs["count"].astype(int).sum() == 60
    assert pairs["actual"].tolist()[:3] == classes


def test_tables_that_cannot_be_drawn(finished: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.path)
    head = "actual,predicted,confidence\n"
    for name, content, expected in (
        ("predictions", None, "not found"),
        ("predictions", "", "not a table: No columns to parse from file"),
        ("predictions", "\xff", "not a table: 'utf-8' codec can't decode"),
        ("predictions", "a,b\n1,2\n", "lacks the column(s) actual, confidence, predicted"),
        (
            "predictions",
            f"{head}7,7,1\n",
            "must have a row for each of the 60 test images, but has",
        ),
        ("predictions", f"{head}7,7,high\n", "not a table: could not convert string to float"),
        ("predictions", head + "square,7,1\n" * 60, "names the class 'square', which is not in "),
        ("history", "loss\n1\n", "lacks the column(s) accuracy, step, validation_accuracy, "),
        ("history", None, "not found"),
    ):
        path = Path("metrics", f"{name}.csv")
        before = path.read_bytes()
        path.unlink()
        if content is not None:
            path.write_text(content, encoding="latin-1")
        with pytest.raises(StageError) as error:
            plot.main()
        assert str(error.value).startswith(f"{path}: {expected}")
        assert str(error.value).endswith("; run `dvc repro`")
        path.write_bytes(before)
    assert finished.git("status", "--porcelain") == ""
    Path("metrics/predictions.csv").write_text("a,b\n1,2\n")
    finished.dvc("repro")  # as the messages say
    assert finished.git("status", "--porcelain") == ""
