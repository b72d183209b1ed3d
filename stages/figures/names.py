"""Class names in figures: of any script and any length."""

import sys
import textwrap
import unicodedata

import matplotlib
from matplotlib import font_manager

# matplotlib's own font, then those that are common for the scripts which it lacks.
FAMILIES = [
    "DejaVu Sans",
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "Noto Sans",
    "Unifont",
    "Arial Unicode MS",
]


def width(text: str) -> float:
    """Estimate how many small letters are as wide as a text."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide + 0.35 * sum(map(str.isupper, text))


def wrap(prefix: str, name: str, columns: int) -> str:
    """Break a title into at most two lines, each as wide as so many small letters."""
    characters = int(columns * len(name) / width(name))
    return "\n".join(textwrap.wrap(f"{prefix} {name}", characters, max_lines=2, placeholder=" …"))


def shorten(name: str, columns: int) -> str:
    """Leave out the middle of a longer name: its end is often what tells it from others."""
    characters = int(columns * len(name) / width(name))
    return name if len(name) <= characters else f"{name[: characters - 9]}…{name[-8:]}"


def choose_fonts(names: list[str]) -> None:
    """Let matplotlib fall back on other families for characters that its own font lacks.

    Prints a warning if there are none. Names that need no other font are drawn the same everywhere.
    """
    installed = {*font_manager.get_font_names()}
    families, lacking = [], {*map(ord, "".join(names))}
    for family in FAMILIES:
        if family in installed:
            path = font_manager.findfont(family, fallback_to_default=False)
            if found := lacking & {*font_manager.get_font(path).get_charmap()}:
                families.append(family)
                lacking -= found
    matplotlib.rcParams["font.family"] = families or FAMILIES[:1]
    if lacking:
        shown = " ".join(map(chr, sorted(lacking)[:10])) + (" ..." if len(lacking) > 10 else "")
        print(
            f"warning: no font for {shown}: class names show boxes in the figures; install one of "
            f"{', '.join(FAMILIES[1:])}, delete matplotlib's list of fonts, "
            f"{matplotlib.get_cachedir()}/fontlist-*.json, then run "
            "`dvc repro --force --single-item plot`",
            file=sys.stderr,
        )
