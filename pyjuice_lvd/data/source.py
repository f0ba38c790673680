"""What a source of data holds: its parts as they are, before they are checked and split."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyjuice_lvd.settings.choices import SPLITS

Array = npt.NDArray[Any]
UInt8 = npt.NDArray[np.uint8]

_OTHER_NAMES = {"train": "train", "training": "train", "valid": "valid", "validation": "valid", "val": "valid",
                "dev": "valid", "test": "test", "testing": "test"}  # fmt: skip


@dataclass(frozen=True)
class Source:
    """Images or tables as a source holds them, not yet validated.

    `parts` has some of the keys "train", "valid" and "test", or the one key "all" if the source has no split. `how`
    says where its split comes from, in words that follow the names of the parts. `columns` are the names of a table's
    columns, if it has any. `notes` say, a line each, what of the source was not read. `files` are the names of the
    image files of a folder without subfolders, in the order of its images.
    """

    name: str
    parts: dict[str, Array]
    how: str = ""
    columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


def column_name(columns: Sequence[str], index: int) -> str:
    """Call a table's column, counted from 1, by its name too, if it has one."""
    return f"column {index + 1}" + (f" ({columns[index]})" if len(columns) else "")


def meant_split(name: str) -> str | None:
    """Say which of the splits a name seems to mean, though it is none of theirs: `x_val`, `Test`; or None."""
    word = re.sub(r"^x_", "", name.lower())
    return _OTHER_NAMES.get(word) if word not in SPLITS or name != word else None


def not_read(names: Iterable[object], what: str = "file") -> tuple[str, ...]:
    """Say that some files, or other things, of a source were not read; nothing where there are none."""
    listed = sorted(str(name) for name in names)
    if not listed:
        return ()
    some = ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")
    return (f"{len(listed)} {what}{'s' if len(listed) > 1 else ''} not read: {some}",)


def others_in(folder: Path, read: Iterable[Path]) -> list[str]:
    """Name what is in a folder beside the files that were read, but for hidden files."""
    return sorted({path.name for path in folder.iterdir() if not path.name.startswith(".")} - {p.name for p in read})
