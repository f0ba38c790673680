"""Names of images in a file that came from anywhere: such as may be given to the files of a new folder, or none."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import PurePosixPath, PureWindowsPath

from pyjuice_lvd.errors import InputError

SUFFIX = ".png"

_MOST_BYTES = 255
"""Of a file's name, on common file systems."""


def png_names(names: Sequence[str]) -> tuple[str, ...]:
    """Name the PNG files of images that had these names: those of other formats get one suffix more."""
    return tuple(name if name.lower().endswith(SUFFIX) else name + SUFFIX for name in names)


def check_names(names: Sequence[str], name: str) -> None:
    """Raise InputError, whose line begins with `name`, where names are none that the PNG files of one folder may have.

    That is where one has a path's separator, is hidden (`.` and `..` too), has control characters, is too long, is not
    one of a .png file, or comes twice.
    """
    seen = set[str]()
    for number, own in enumerate(names):
        if wrong := _wrong(own) or ("the name of another image" if own in seen else ""):
            raise InputError(f"{name}: image {number} is named {own!a:.60}: found {wrong}, wanted names of .png files")
        seen.add(own)


def _wrong(name: str) -> str:
    """Say what keeps a name from being that of a PNG file in a folder, on any system; or nothing."""
    if {"/", "\\"} & set(name) or PureWindowsPath(name).name != name or PurePosixPath(name).name != name:
        return "a path"
    if name.startswith("."):
        return "a hidden name"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        return "control characters"
    if len(name.encode()) > _MOST_BYTES:
        return f"more than {_MOST_BYTES} bytes"
    return "" if name.lower().endswith(SUFFIX) else "another kind of file"
