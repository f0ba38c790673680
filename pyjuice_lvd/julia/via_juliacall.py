"""The bridge `juliacall`: lets the juliacall package start Julia >= 1.10; the calls themselves do not go through it."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable

from pyjuice_lvd.julia.find import juliacall_has_started


def start(threads: int) -> Callable[[str], str]:
    """Start Julia; returns a function that evaluates code whose value is a Julia String (and that never throws)."""
    # Without the first, a Julia of several threads crashes sooner or later, for its threads meet by a signal.
    settings = {"handle_signals": "yes", "threads": str(threads), "optimize": "3"}
    if juliacall_has_started():
        _warn_of_other_settings(settings)
    else:
        for name, value in settings.items():
            os.environ.setdefault(f"PYTHON_JULIACALL_{name.upper()}", value)
        os.environ.setdefault("PYTHON_JULIACALL_OPTLEVEL", "3")  # what other packages call `optimize`
    with warnings.catch_warnings():
        # With signals handled by Julia, a PyTorch that was imported earlier does no harm.
        warnings.filterwarnings("ignore", message="torch was imported before juliacall")
        import juliacall

    def evaluate(code: str) -> str:
        return str(juliacall.Main.seval(code))

    return evaluate


def _warn_of_other_settings(settings: dict[str, str]) -> None:
    config = sys.modules["juliacall"].CONFIG
    others = {name: config[f"opt_{name}"] for name, value in settings.items() if config[f"opt_{name}"] != value}
    if others:
        found = ", ".join(f"{name}={value}" for name, value in others.items())
        want = ", ".join(f"{name}={settings[name]}" for name in others)
        warnings.warn(
            f"juliacall was imported earlier, with {found}: lvd-juice wants {want}; start Julia by"
            " pyjuice_lvd.julia.start() before that import",
            RuntimeWarning,
            stacklevel=4,
        )
