"""The files of finished pieces of work: an interrupted call takes them up, if they are of the same work."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files import names
from pyjuice_lvd.files.atomic import make_folder
from pyjuice_lvd.files.formats import flat, read_table, write_json
from pyjuice_lvd.settings import Settings, kept, restored


class Pieces:
    """The folder of the pieces, if they are to be kept at all (None: they are not).

    It knows what it belongs to: `settings`, but for threads and device, and the data of the work, `of`: digests, and
    other values that JSON knows, by name.

    Raises
    ------
    InputError
        Where the folder cannot be written, or has pieces of other work.

    """

    def __init__(self, folder: Path | None, settings: Settings, **of: str | int) -> None:
        self.folder = None if folder is None else make_folder(folder)
        if folder is None:
            return
        path = folder / names.PIECES
        if not path.exists():  # older versions have none
            write_json(path, {"of": of, "settings": kept(settings)})
            return
        earlier = read_table(path)
        if not all(isinstance(earlier[part], dict) for part in ("of", "settings")):
            raise InputError(f"{path}: damaged, wanted tables 'of' and 'settings'")
        for name, value in of.items():
            if earlier["of"].get(name) != value:
                other = name.replace("_", " ")
                raise InputError(f"{folder}: has pieces of work on other {other}; wanted the same, or another folder")
        before = replace(restored(earlier["settings"], f"{path}: "), threads=settings.threads, device=settings.device)
        if before != settings:
            old, new = flat(before.to_dict()), flat(settings.to_dict())
            name = next(name for name in new if new[name] != old[name])
            found = f"{name} = {old[name]!r}, wanted {new[name]!r}"
            raise InputError(f"{folder}: has pieces of work with {found}, or another folder")

    def path(self, name: str) -> Path | None:
        """Give the path of a piece; None where pieces are not kept."""
        return None if self.folder is None else self.folder / name

    def finished(self, name: str) -> Path | None:
        """Give the path of a piece that is finished, or None."""
        path = self.path(name)
        return path if path is not None and path.exists() else None

    def drop(self, *dropped: str) -> None:
        """Remove pieces that others replace."""
        for name in dropped:
            path = self.path(name)
            if path is not None and path.is_dir():
                shutil.rmtree(path)
            elif path is not None:
                path.unlink(missing_ok=True)
