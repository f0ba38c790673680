"""Which versions of what made a result."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

from pyjuice_lvd import julia


def version_of(package: str) -> str | None:
    """Return the version of an installed package, or None; the package is not imported."""
    try:
        return installed(package)
    except PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Return the versions of Python, Julia and the packages that results depend on; starts Julia."""
    packages = ("lvd-juice", "numpy", "scikit-learn", "torch")
    return {
        **{name: version_of(name) for name in packages},
        "python": platform.python_version(),
        "julia": str(julia.start().version),
    }
