"""The files of finished pieces of work: an interrupted call takes them up, if they are of the same work.

Of processes that share the work, the first keeps the pieces; the others go on from copies of those at the start.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pyjuice_lvd.circuit.reduce import current
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files import names
from pyjuice_lvd.files.atomic import ASIDE, make_folder
from pyjuice_lvd.files.formats import flat, read_table, write_json
from pyjuice_lvd.large import OwnFolder
from pyjuice_lvd.settings import Settings, kept, restored


class Pieces:
    """The folder of the pieces, if they are to be kept at all (None: they are not), and by this process.

    It knows what it belongs to: `settings`, but for threads and device, and the data of the work, `of`: digests, and
    other values that JSON knows, by name.

    Raises
    ------
    InputError
        Where the folder cannot be written, or has pieces of other work.

    """

    def __init__(self, folder: Path | None, settings: Settings, **of: str | int) -> None:
        reducer = current()
        self.folder = None if folder is None or reducer.rank else make_folder(folder)
        if self.folder is not None:
            _check_work(self.folder, settings, of)
        self._there = self.folder
        if reducer.size > 1 and reducer.broadcast_bytes(b"" if self.folder is None else b"kept"):
            self._hand_round()

    def _hand_round(self) -> None:
        """Give the other processes copies of the pieces, in folders that are gone with them."""
        reducer, found = current(), []
        if self.folder is not None:
            every = (path for path in sorted(self.folder.rglob("*")) if path.is_file())
            found = [str(path.relative_to(self.folder)) for path in every if not path.name.startswith(ASIDE)]
        else:
            self._copies = OwnFolder()
            self._there = self._copies.path
        for name in json.loads(reducer.broadcast_bytes(json.dumps(found).encode())):
            content = reducer.broadcast_bytes(b"" if self.folder is None else (self.folder / name).read_bytes())
            if self.folder is None and self._there is not None:
                make_folder((self._there / name).parent)
                (self._there / name).write_bytes(content)

    def path(self, name: str) -> Path | None:
        """Give the path that a piece is written to; None where pieces are not kept, or another process keeps them."""
        return None if self.folder is None else self.folder / name

    def checkpoint(self, name: str) -> Path | None:
        """Give the path of a file that the work goes on from, and that is replaced; None where pieces are not kept."""
        return None if self._there is None else self._there / name

    def finished(self, name: str) -> Path | None:
        """Give the path of a piece that was finished when this was made, or here, or None."""
        path = self.checkpoint(name)
        return path if path is not None and path.exists() else None

    def drop(self, *dropped: str) -> None:
        """Remove pieces that others replace."""
        for name in dropped:
            path = self.path(name)
            if path is not None and path.is_dir():
                shutil.rmtree(path)
            elif path is not None:
                path.unlink(missing_ok=True)


def _check_work(folder: Path, settings: Settings, of: Mapping[str, str | int]) -> None:
    """Write down what the pieces in a folder belong to, or check that they belong to it."""
    path = folder / names.PIECES
    if not path.exists():  # older versions have none
        write_json(path, {"of": of, "settings": kept(settings)})
        return
    earlier = read_table(path)
    if not all(isinstance(earlier[part], dict) for part in ("of", "settings")):
        raise InputError(f"{path}: damaged, wanted tables 'of' and 'settings'")
    for name in sorted({*of, *earlier["of"]}):
        if earlier["of"].get(name) != of.get(name):
            other = name.replace("_", " ")
            raise InputError(f"{folder}: has pieces of work on other {other}; wanted the same, or another folder")
    before = replace(restored(earlier["settings"], f"{path}: "), threads=settings.threads, device=settings.device)
    if before != settings:
        old, new = flat(before.to_dict()), flat(settings.to_dict())
        name = next(name for name in new if new[name] != old[name])
        found = f"{name} = {old[name]!r}, wanted {new[name]!r}"
        raise InputError(f"{folder}: has pieces of work with {found}, or another folder")
