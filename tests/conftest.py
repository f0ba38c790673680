"""What all tests share."""

import os
import signal
from pathlib import Path

import pytest

# A shell that runs the tests in the background makes them, and the processes that they start, ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Waiting threads of PyTorch's and scikit-learn's pools sleep: spinning, they keep the cores from Julia's threads, from
# each other and from whatever else runs, and a K-means of milliseconds may take a second. Read as libraries are loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Most of the time goes into compiling, of which this takes a fifth to a third less. What users run, compiled as far as
# Julia can, is held to references by `test_kernels_as_users_have_them` and to the same streams by test_compression.py.
os.environ.setdefault("LVD_JULIA_OPTIMIZE", "1")

_LONG = ("test_julia_package.py", "test_distributed.py")
"""Files whose tests take minutes. They come first: nothing else is left to run beside the last."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of long files before the others."""
    items.sort(key=lambda item: item.path.name not in _LONG)


@pytest.fixture
def in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make all arrays large, and blocks small; gives the cache folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("LVD_CACHE", str(folder))
    monkeypatch.setattr("pyjuice_lvd.large.LARGE", 1)
    monkeypatch.setattr("pyjuice_lvd.large.BLOCK", 600)
    return folder
