"""Files that no crash leaves half written, and whose errors name them.

Every file is written aside, fsynced and renamed: a reader finds the old contents or the new, never a part of them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pyjuice_lvd.errors import InputError

ASIDE = ".tmp-"
"""How the name of a file that is being written begins."""

_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Write a file aside in the same folder; when the block ends well, fsync it and rename it to `path`.

    Yields the file, open for binary writing. Its `.name` is the temporary path, with `path`'s suffix, for writers that
    want a path (they must write into that file, not replace it). When the block raises, the file is removed and `path`
    is as it was.

    Raises
    ------
    InputError
        The folder is missing or cannot be written, or `path` is there and no regular file: a folder, a pipe, a device.
    OSError
        The disk is full or failing.

    """
    target, aside, file = _open_aside(path)
    try:
        with naming(path), file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(target)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    fsync_folder(target.parent)


def given_path(path: str | os.PathLike[str]) -> Path:
    """Give a path; InputError for an empty one, which an unset variable is, and not the working directory."""
    if not os.fspath(path):
        raise InputError("path: found '', wanted that of a file or folder")
    return Path(path)


def make_folder(path: str | os.PathLike[str]) -> Path:
    """Make a folder to write files to, and those above it; raises InputError where it is a file, or cannot be made."""
    folder = given_path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in _FULL:
            raise
        raise InputError(f"{path}: cannot be written ({error.strerror}), wanted a folder") from error
    return folder


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Fill a new folder aside, beside `path`; when the block ends well, rename it to `path`, else remove it.

    Raises InputError as `check_new_folder` does.
    """
    check_new_folder(path)
    target = Path(os.path.realpath(path))
    aside = target.with_name(f"{ASIDE}{secrets.token_hex(4)}-{target.name}")
    try:
        aside.mkdir()
        yield aside
        fsync_folder(aside)
        aside.replace(target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    fsync_folder(target.parent)


def check_new_folder(path: str | os.PathLike[str]) -> None:
    """Raise InputError where `path` is a file or a folder with files in it, or no folder can be made there."""
    target = Path(os.path.realpath(path))
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"{path}: is there already, wanted a new folder")
    try:
        Path(tempfile.mkdtemp(prefix=ASIDE, dir=target.parent)).rmdir()
    except OSError as error:
        if error.errno in _FULL:
            raise
        raise InputError(f"{path}: cannot be made ({error.strerror}), wanted a new folder in a writable one") from error


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise what `atomic_write` would where `path` cannot be written: before the work, in place of after it."""
    _, aside, file = _open_aside(path)
    file.close()
    aside.unlink()


def _open_aside(path: str | os.PathLike[str]) -> tuple[Path, Path, BinaryIO]:
    """Open a new file beside `path`: returns where the contents belong in the end, the new file's path, and it."""
    target = Path(os.path.realpath(path))  # a symbolic link stays one
    aside = target.with_name(f"{ASIDE}{secrets.token_hex(4)}-{target.name}")
    try:
        if kind := _no_file(path):
            raise InputError(f"{path}: is a {kind}, wanted a file to write")
        return target, aside, aside.open("xb")
    except OSError as error:
        if error.errno in _FULL:
            raise
        raise InputError(f"{path}: cannot be written ({error.strerror}), wanted a file in a writable folder") from error


def _no_file(path: str | os.PathLike[str]) -> str | None:
    """Say what `path` leads to where that is no regular file, which a new one would take the place of."""
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISREG(mode):
        return None
    kinds = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    return kinds.get(stat.S_IFMT(mode), "device")


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Give the errors of writing to an open file the file's name: a full disk is reported without one."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # raised by a library, which says what went wrong in words of its own
            raise OSError(errno.EIO, str(error), str(path)) from error
        if error.filename is None:
            error.filename = str(path)
        raise


def fsync_folder(folder: Path) -> None:
    """Make the folder's entries durable: a rename lives in the folder, not in the file."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
