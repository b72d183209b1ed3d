"""Class names in figures: of any script and any length."""

import sys
import textwrap
import unicodedata

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font, StyleFlags


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
    """Add fonts of this machine for characters that matplotlib's own font lacks.

    Prints a warning if there are none. Names that need no other font are drawn the same everywhere.
    """
    default = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    lacking = {ord(character) for character in "".join(names)} - set(default.get_charmap())
    families = ["DejaVu Sans"]
    # The list that matplotlib keeps does not know of fonts that were installed since.
    for path in sorted(font_manager.findSystemFonts()) if lacking else ():
        try:
            font = FT2Font(path)
            found = lacking & set(font.get_charmap())
            styled = font.style_flags & (StyleFlags.BOLD | StyleFlags.ITALIC)
            if found and font.scalable and not styled:
                font_manager.fontManager.addfont(path)
                families.append(font.family_name)
                lacking -= found
        except (OSError, RuntimeError):  # a font that FreeType or matplotlib cannot read
            continue
    matplotlib.rcParams["font.family"] = families
    if lacking:
        shown = " ".join(map(chr, sorted(lacking)[:10])) + (" ..." if len(lacking) > 10 else "")
        print(
            f"warning: no font on this machine has {shown}: class names show boxes in the figures; "
            "install one (Noto has all scripts), then run `dvc repro --force --single-item plot`",
            file=sys.stderr,
        )
