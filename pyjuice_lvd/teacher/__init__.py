"""The teacher: a VQ-VAE in PyTorch whose features of patches are clustered into the circuit's latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyjuice_lvd.settings import TeacherSettings

if TYPE_CHECKING:
    from pyjuice_lvd.teacher.teacher import Teacher

__all__ = ["Teacher", "TeacherSettings"]


def __getattr__(name: str) -> Any:
    """Import `Teacher` when it is asked for: settings are read without the seconds that PyTorch takes to load."""
    if name == "Teacher":
        from pyjuice_lvd.teacher.teacher import Teacher

        return Teacher
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
