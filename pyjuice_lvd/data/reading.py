"""What all readers of files share: errors in one line that names the file, and memory in proportion to its size."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyjuice_lvd.errors import InputError

_FREE, _RATIO = 2**26, 256
"""A compressed file may unpack to 64 MiB, and beyond that to 256 times its size: data do not, traps do."""

_WORDS = 200
"""So many characters of what a library has to say of a file."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged or unreadable file into one line that names the file."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error).split("\n")[0]
        reason = textwrap.shorten(said, _WORDS, placeholder=" ...")  # a damaged header may be quoted whole
        raise InputError(f"{path}: cannot be read ({reason or type(error).__name__})") from error


def check_unpacked(name: object, unpacked: int, packed: int) -> None:
    """Raise InputError, before anything is unpacked, where `packed` bytes claim to be very many more."""
    allowed = _FREE + _RATIO * packed
    if unpacked > allowed:
        raise InputError(
            f"{name}: {packed:,} bytes would unpack to {unpacked:,}, wanted at most {allowed:,}; "
            "if that is right, keep the data as an .npy file"
        )
