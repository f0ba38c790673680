"""The bridge `juliacall`: lets the juliacall package start Julia >= 1.10; the calls themselves do not go through it."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable

from pyjuice_lvd.julia.find import juliacall_has_started


def start(threads: int) -> Callable[[str], str]:
    """Start Julia; returns a function that evaluates code whose value is a Julia String (and that never throws)."""
    if juliacall_has_started():
        if sys.modules["juliacall"].CONFIG["opt_handle_signals"] != "yes":
            warnings.warn(
                "juliacall was imported earlier, without PYTHON_JULIACALL_HANDLE_SIGNALS=yes: it may crash when Julia"
                " has several threads; set that before the import, or start Julia by pyjuice_lvd.julia.start()",
                RuntimeWarning,
                stacklevel=2,
            )
    else:
        settings = {
            "PYTHON_JULIACALL_HANDLE_SIGNALS": "yes",
            "PYTHON_JULIACALL_THREADS": str(threads),
            "PYTHON_JULIACALL_OPTIMIZE": "3",
            "PYTHON_JULIACALL_OPTLEVEL": "3",  # the name that some versions of juliacall and PySR use
        }
        for name, value in settings.items():
            os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        # With signals handled by Julia, PyTorch imported earlier does no harm.
        warnings.filterwarnings("ignore", message="torch was imported before juliacall")
        import juliacall

    def evaluate(code: str) -> str:
        return str(juliacall.Main.seval(code))

    return evaluate
