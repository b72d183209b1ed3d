"""The figures show what they should, whatever the predictions are."""

import io
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
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from project import Project

from stages import plot
from stages.common.errors import StageError
from stages.figures import drawing, names

CLASSES = ["Ankle boot", "T-shirt/top", "NA"]


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    """Let no test change matplotlib's settings for the next, nor warn of glyphs without a font."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


def table(count: int, wrong: int, classes: list[str] = CLASSES) -> pd.DataFrame:
    """Return predictions of `count` images, the first `wrong` of them mistaken."""
    names = np.array(classes)
    actual = np.arange(count) % len(classes)
    predicted = np.where(np.arange(count) < wrong, (actual + 1) % len(classes), actual)
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


def pixels(axes: Axes) -> np.ndarray:
    """Return the only image of some axes, checked to be drawn as ink on paper."""
    (image,) = axes.images
    assert image.cmap.name == "gray_r"
    assert image.get_clim() == (0, 255)
    return np.asarray(image.get_array())


def drawn_texts(figure: Figure) -> list[Text]:
    """Draw a figure; return its texts that are not empty."""
    FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]
    return [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]


def check_that_all_is_in_the_picture(figure: Figure) -> None:
    for text in drawn_texts(figure):
        box = text.get_window_extent()
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= figure.bbox.width + 1, text
        assert box.y1 <= figure.bbox.height + 1, text


# --- The grids and the sample ------------------------------------------------------------------


@pytest.mark.parametrize(("wrong", "shown"), [(0, 0), (1, 1), (9, 9), (10, 10), (25, 10)])
def test_a_grid_shows_up_to_ten_images_with_their_own_titles(wrong: int, shown: int) -> None:
    predictions = table(30, wrong)
    mistaken = predictions[predictions["actual"] != predictions["predicted"]]
    figure = drawing.grid(stripes(30), mistaken, "misclassified", seed=1)
    assert figure.get_suptitle() == (
        f"misclassified: {shown} of {wrong}" if shown else "misclassified: none"
    )
    assert len(figure.axes) == 10
    drawn = [axes for axes in figure.axes if axes.images]
    assert len(drawn) == shown
    titles = {
        f"predicted {row.predicted}\ntrue {row.actual}\nconfidence {row.confidence:.1%}": index
        for index, row in zip(mistaken.index, mistaken.itertuples(), strict=True)
    }
    for axes in drawn:
        assert (pixels(axes) == stripes(30)[titles.pop(axes.get_title()), ..., 0]).all()


def test_the_number_of_a_grid_has_its_thousands_marked() -> None:
    figure = drawing.grid(stripes(1234), table(1234, 0), "correctly classified", seed=0)
    assert figure.get_suptitle() == "correctly classified: 10 of 1,234"


def test_cells_without_an_image_stay_blank() -> None:
    figure = drawing.grid(stripes(30), table(30, 0).iloc[:0], "misclassified", seed=1)
    drawn = io.BytesIO()
    figure.savefig(drawn)
    picture = matplotlib.image.imread(io.BytesIO(drawn.getvalue()))[..., :3]
    ink = np.flatnonzero((picture < 1).any(axis=(1, 2)))
    assert 0 < ink.max() < 0.1 * len(picture)  # nothing but the title


@pytest.mark.slow
def test_images_are_drawn_without_ticks_or_frames() -> None:
    figures = (drawing.sample(stripes(2)[1], "Bag"), drawing.grid(stripes(30), table(30, 0), "", 0))
    for axes in (axes for figure in figures for axes in figure.axes):
        assert len(axes.get_xticks()) == len(axes.get_yticks()) == 0
        assert not axes.get_frame_on()


@pytest.mark.slow
def test_the_seed_chooses_the_images() -> None:
    titles = [
        [axes.get_title() for axes in drawing.grid(stripes(90), table(90, 0), "", seed).axes]
        for seed in (0, 0, 1)
    ]
    assert titles[0] == titles[1] != titles[2]


def test_the_first_training_image_bears_its_name() -> None:
    figure = drawing.sample(stripes(5)[4], "Bag")
    assert figure.axes[0].get_title() == "first training image: Bag"
    assert (pixels(figure.axes[0]) == stripes(5)[4, ..., 0]).all()


# --- The confusion matrix ----------------------------------------------------------------------


def test_the_confusion_matrix_counts(tmp_path: Path) -> None:
    # Taken for the next class 7 times, and once for the one after: not symmetric.
    predictions = pd.concat([table(30, 7), table(3, 3).iloc[:1].assign(predicted="NA")])
    expected = {pair: len(rows) for pair, rows in predictions.groupby(["actual", "predicted"])}
    assert expected["Ankle boot", "T-shirt/top"] != expected.get(("T-shirt/top", "Ankle boot"))

    matrix = plot.count_pairs(predictions, CLASSES)
    figure = drawing.confusion(matrix, CLASSES)
    axes = figure.axes[0]
    FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert axes.get_title() == "confusion matrix of the test images"
    assert axes.yaxis_inverted()
    across, down = (
        dict(
            zip(
                axis.get_ticklocs(),
                (label.get_text() for label in axis.get_ticklabels()),
                strict=True,
            )
        )
        for axis in (axes.xaxis, axes.yaxis)
    )
    counts = {}
    for text in axes.texts:
        x, y = text.get_position()
        counts[down[y], across[x]] = int(text.get_text())
        assert text.get_fontweight() == ("bold" if x == y else "normal")
    assert counts == expected

    # The darker, the more mistakes; what is right is as light as what never happens.
    shade = np.asarray(axes.images[0].get_array())
    for row, actual in enumerate(CLASSES):
        for column, predicted in enumerate(CLASSES):
            mistakes = expected.get((actual, predicted), 0) if row != column else 0
            assert shade[row, column] == pytest.approx(mistakes**0.5)
    low, high = axes.images[0].get_clim()
    assert low == 0
    assert high == pytest.approx(2 * shade.max())

    plot.write_pairs(tmp_path / "confusion.csv", matrix, CLASSES)
    lines = (tmp_path / "confusion.csv").read_bytes().decode().split("\n")
    assert lines[:4] == ["actual,predicted,count"] + [
        f"{name},{name},{expected.get((name, name), 0)}" for name in CLASSES
    ]
    assert sorted(lines[4:]) == sorted(
        ["", *(f"{a},{p},{count}" for (a, p), count in expected.items() if a != p)]
    )


def test_a_matrix_without_a_mistake_is_light_all_over() -> None:
    figure = drawing.confusion(np.diag([7, 0, 12]), CLASSES)
    (image,) = figure.axes[0].images
    assert not np.asarray(image.get_array()).any()
    assert image.get_clim() == (0, 2)
    assert [text.get_text() for text in figure.axes[0].texts] == ["7", "12"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "classes",
    [
        ["no", "yes"],
        ["benign keratosis-like lesions", "no"],
        ["benign keratosis-like lesions", "a name of many words that goes on and on and on", "x"],
        [f"{number} is a name that differs at its end {number}" for number in range(10)],
        [str(number) for number in range(47)],
        [f"letter {number}" for number in range(62)],
        [f"class number {number}" for number in range(200)],
    ],
    ids=lambda classes: f"{len(classes)} {classes[0][:10]}",
)
def test_any_number_of_classes_and_any_length_of_names_stays_readable(classes: list[str]) -> None:
    check_that_it_is_readable(classes)


@pytest.mark.usefixtures("noto")
def test_long_names_in_chinese_stay_readable() -> None:
    check_that_it_is_readable(["良性角化症様病変を含む皮膚の病変のすべて", "基底細胞癌"])


def check_that_it_is_readable(classes: list[str]) -> None:
    count = len(classes)
    names.choose_fonts(classes)
    matrix = 3 * np.eye(count, dtype=np.int64) + np.eye(count, k=1, dtype=np.int64)
    matrix[0, 0] = 1234
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
    labels = axes.get_yticklabels()
    assert len({label.get_text() for label in labels}) == count
    for upper, lower in pairwise(labels):
        assert not upper.get_window_extent().overlaps(lower.get_window_extent())
    columns = [label.get_window_extent() for label in axes.get_xticklabels()]
    for left, right in pairwise(columns):
        assert not left.overlaps(right)
    assert float(labels[0].get_fontsize()) >= 6


@pytest.mark.slow
def test_so_many_classes_that_their_counts_have_no_room() -> None:
    figure = drawing.confusion(100 * np.eye(400, dtype=np.int64), [f"c{i}" for i in range(400)])
    assert figure.get_figwidth() <= 60
    assert not figure.axes[0].texts


# --- Names -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_dollar_sign_is_no_formula() -> None:
    classes = ["$x^2$", "5 $ and 6 $", r"$\no formula$"]
    predictions = table(30, 4, classes)
    figures = (
        drawing.grid(stripes(30), predictions, "misclassified", 0),
        drawing.confusion(plot.count_pairs(predictions, classes), classes),
        drawing.sample(stripes(1)[0], classes[2]),
    )
    for figure in figures:
        texts = [text for text in drawn_texts(figure) if "$" in text.get_text()]
        assert texts
        assert not any(text.get_parse_math() for text in texts)


LONG = [
    "a name that is quite long, as those of skin lesions are",
    "BENIGN KERATOSIS-LIKE LESIONS OF THE SKIN",
    "良性角化症様病変を含む皮膚の病変のすべて",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a rather long name", *LONG])
def test_titles_of_a_grid_do_not_overlap(name: str) -> None:
    predictions = table(30, 9).replace({"NA": name, "Ankle boot": f"{name}!"})
    names.choose_fonts([name])
    figure = drawing.grid(stripes(30), predictions, "correctly classified", seed=0)
    check_that_all_is_in_the_picture(figure)
    boxes = [axes.title.get_window_extent() for axes in figure.axes]
    for index, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[index + 1 :])
        assert not any(
            box.overlaps(axes.get_window_extent().shrunk(0.9, 0.9)) for axes in figure.axes
        )
    check_that_all_is_in_the_picture(drawing.sample(stripes(1)[0], name))


def test_names_keep_their_beginning_and_their_end() -> None:
    assert names.shorten("x" * 30, 30) == "x" * 30
    assert (
        names.shorten("melanoma of the kind that has stage 1", 30)
        == "melanoma of the kind … stage 1"
    )
    assert len(names.shorten("y" * 31, 30)) == 30
    assert len(names.shorten("Y" * 31, 30)) == 22
    assert len(names.shorten("犬" * 31, 30)) == 15
    assert names.wrap("predicted", "short", 26) == "predicted short"
    assert names.wrap("predicted", "benign keratosis-like lesions", 26) == (
        "predicted benign\nkeratosis-like lesions"
    )
    assert names.wrap("one", "two three four five six", 9) == "one two\nthree …"


@pytest.fixture
def noto(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let matplotlib know Debian's fonts-noto-cjk, even if they were installed a moment ago."""
    paths = [path for path in font_manager.findSystemFonts() if "NotoSansCJK-Regular" in path]
    if not paths:
        pytest.skip("needs Debian's fonts-noto-cjk")
    add_font(Path(paths[0]), monkeypatch)


def add_font(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Add a font to those that matplotlib knows, until the end of the test."""
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*font_manager.fontManager.ttflist])
    font_manager.fontManager.addfont(path)


def make_font(path: Path, family: str, character: str) -> None:
    """Build a font in which a character is a black square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 1000), (1000, 1000), (1000, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square, empty = pen.glyph(), TTGlyphPen(None).glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord(character): "square"})
    builder.setupGlyf({".notdef": empty, "square": square})
    builder.setupHorizontalMetrics({".notdef": (500, 0), "square": (1000, 0)})
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=1000, fsSelection=0x40)
    builder.setupPost()
    builder.save(path)


# Characters for private use, which no font need have.
PRIVATE = "\U000f1234"


def rename_class(project: Project, old: str, new: str) -> None:
    """Name a class of the finished project otherwise, without training again."""
    for name in ("data/tensors/manifest.json", "metrics/predictions.csv"):
        path = project.path / name
        content = path.read_text(encoding="utf-8")
        path.unlink()  # it may be a link into DVC's cache
        path.write_text(content.replace(old, new), encoding="utf-8")


def test_a_character_that_no_font_has_is_reported_once(finished: Project) -> None:
    rename_class(finished, "circle", PRIVATE)
    env = {"PYTHONWARNINGS": "error", "PYTHONIOENCODING": "utf-8"}
    warning, rest = finished.stage("plot", env=env).split("\n", 1)
    assert re.fullmatch(
        f"warning: no font for {PRIVATE}: class names show boxes in the figures; install one of "
        r"Noto Sans CJK JP, .*, Arial Unicode MS, delete matplotlib's list of fonts, "
        r"\S*matplotlib\S*/fontlist-\*\.json, then run `dvc repro --force --single-item plot`",
        warning,
    )
    assert rest.startswith("5 figures in metrics/figures: ")
    assert rest.count("\n") == 1


def test_a_family_is_fallen_back_on_for_what_the_default_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    make_font(tmp_path / "squares.ttf", "Squares", PRIVATE)
    monkeypatch.setattr(names, "FAMILIES", ["DejaVu Sans", "No such font", "cmr10", "Squares"])
    add_font(tmp_path / "squares.ttf", monkeypatch)
    names.choose_fonts(["7", PRIVATE])
    assert matplotlib.rcParams["font.family"] == ["DejaVu Sans", "Squares"]
    assert capfd.readouterr().err == ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a missing glyph
        drawn_texts(drawing.sample(stripes(1)[0], PRIVATE))


@pytest.mark.usefixtures("noto")
def test_fonts_of_the_machine_draw_chinese_and_japanese(capfd: pytest.CaptureFixture[str]) -> None:
    names.choose_fonts(["犬", "猫の手"])
    assert len(matplotlib.rcParams["font.family"]) == 1
    assert capfd.readouterr().err == ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn_texts(drawing.sample(stripes(1)[0], "猫の手"))


def test_names_that_the_default_font_has_need_no_other(capfd: pytest.CaptureFixture[str]) -> None:
    for few in (["7", "Ω", "naïve café", "Ж", "عربى"], ["1"]):
        names.choose_fonts(few)
        assert matplotlib.rcParams["font.family"] == ["DejaVu Sans"]
    assert capfd.readouterr().err == ""


def test_many_missing_characters_are_cut_short(capfd: pytest.CaptureFixture[str]) -> None:
    names.choose_fonts(["".join(chr(0xF1000 + number) for number in range(11))])
    shown = " ".join(chr(0xF1000 + number) for number in range(10))
    assert f"for {shown} ...: class names" in capfd.readouterr().err
    assert matplotlib.rcParams["font.family"] == ["DejaVu Sans"]


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
        assert (curve.get_label(), dots.get_label()) == ("training", "validation")
        assert (
            np.asarray(curve.get_xydata()).tolist() == history[["step", name]].to_numpy().tolist()
        )
        assert np.asarray(dots.get_xydata()).tolist() == (
            history.loc[[1, 3], ["step", f"validation_{name}"]].values.tolist()
        )
        assert (curve.get_linestyle(), dots.get_linestyle(), dots.get_marker()) == (
            "-",
            "None",
            "o",
        )
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear"]
    assert figure.axes[1].get_ylim()[1] == 1


def test_without_validation_there_is_one_curve() -> None:
    nothing = [float("nan")] * 2
    history = pd.DataFrame(
        {
            "step": [1, 2],
            "loss": [2.0, 1.0],
            "accuracy": [0.1, 0.5],
            "validation_loss": nothing,
            "validation_accuracy": nothing,
        }
    )
    for axes in drawing.training(history).axes:
        assert [line.get_label() for line in axes.lines] == ["training"]


# --- The stage ---------------------------------------------------------------------------------


def ink_at_the_border(path: Path) -> bool:
    """Tell whether ink touches the border of a figure: a text that was cut off."""
    picture = matplotlib.image.imread(path)[..., :3].mean(axis=2)
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
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
        assert not ink_at_the_border(path)
        assert b"matplotlib" not in path.read_bytes()


@pytest.mark.parametrize("classes", [["null", "7", "NA"], ["007", "7", "1e3"]])
def test_the_stage_draws_what_it_read(
    classes: list[str],
    finished: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Run the stage in this process, and look at its figures as they are saved."""
    rename_class(finished, "circle", classes[0])
    rename_class(finished, "NA", classes[2])
    path = finished.path / "metrics/predictions.csv"
    rows: Any = pd.read_csv(path, dtype=str, keep_default_na=False)
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
    assert set(saved) == {"sample", "mismatch", "match", "confusion", "training"}
    (axes,) = saved["sample"].axes
    first = classes[tensors["train_labels"][0].argmax()]
    assert axes.get_title() == f"first training image: {first}"
    assert (pixels(axes) == tensors["train_images"][0, ..., 0]).all()

    for name, title, chosen in (
        ("mismatch", "misclassified", rows[wrong]),
        ("match", "correctly classified", rows[~wrong]),
    ):
        shown = chosen.sample(min(10, len(chosen)), random_state=7)
        assert saved[name].get_suptitle() == f"{title}: {len(shown)} of {len(chosen)}"
        for axes, (index, row) in zip(saved[name].axes, shown.iterrows(), strict=False):
            assert axes.get_title().split("\n")[:2] == [
                f"predicted {row['predicted']}",
                f"true {row['actual']}",
            ]
            assert (pixels(axes) == tensors["test_images"][index, ..., 0]).all()

    (axes,) = saved["confusion"].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == classes
    total = sum(int(text.get_text()) for text in axes.texts)
    assert total == len(rows) == 60
    history = pd.read_csv("metrics/history.csv")
    for axes in saved["training"].axes:
        assert np.asarray(axes.lines[0].get_ydata()).tolist() == history[axes.get_ylabel()].tolist()
    pairs = pd.read_csv("metrics/confusion.csv", dtype=str, keep_default_na=False)
    assert pairs["count"].astype(int).sum() == 60
    assert pairs["actual"].tolist()[:3] == classes


def test_the_users_matplotlib_settings_do_not_reach_the_figures(
    finished: Project, tmp_path: Path
) -> None:
    for folder in (tmp_path, finished.path):  # matplotlib reads one where it is started, too
        (folder / "matplotlibrc").write_text("axes.facecolor: red\nfont.size: 30\n")
    finished.stage("plot", env={"MATPLOTLIBRC": str(tmp_path)})
    assert finished.git("status", "--porcelain", "metrics") == ""


def test_tables_that_cannot_be_drawn(finished: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.path)
    head = "actual,predicted,confidence\n"
    for name, content, expected in (
        ("predictions.csv", None, "not found"),
        ("predictions.csv", b"", "not a table: No columns to parse from file"),
        ("predictions.csv", b"\xff\xfe\xfd", "not a table: 'utf-8' codec can't decode"),
        ("predictions.csv", b"a,b\n1,2\n", "lacks the column(s) actual, confidence, predicted"),
        ("predictions.csv", f"{head}7,7,1\n", "must have a row for each of the 60 test images, "),
        ("predictions.csv", f"{head}7,7,high\n", "not a table: could not convert string to float"),
        (
            "predictions.csv",
            head + "square,7,1\n" * 60,
            "names the class 'square', which is not in ",
        ),
        ("history.csv", b"step\n1\n", "lacks the column(s) accuracy, loss, validation_accuracy, "),
        ("history.csv", None, "not found"),
    ):
        path = Path("metrics", name)
        before = path.read_bytes()
        path.unlink()
        if content is not None:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        with pytest.raises(StageError) as error:
            plot.main()
        assert str(error.value).startswith(f"metrics/{name}: {expected}")
        assert str(error.value).endswith("; run `dvc repro`")
        assert finished.git("status", "--porcelain", "metrics/figures") == ""
        path.write_bytes(before)
    Path("metrics/predictions.csv").write_text("a,b\n1,2\n")
    finished.dvc("repro")  # as the messages say
    assert finished.git("status", "--porcelain") == ""
