"""Tractable density models of images: probabilistic circuits by latent variable distillation.

>>> from pyjuice_lvd import LVDPG
>>> model = LVDPG(preset="tiny", random_state=0).fit(images)  # uint8 (N, H, W[, C])
>>> model.bpd(held_out)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyjuice_lvd.circuit import Circuit, CircuitBuilder
    from pyjuice_lvd.circuit.devices import use_device
    from pyjuice_lvd.estimators.baselines import EINET, RATSPN
    from pyjuice_lvd.estimators.classifier import CircuitClassifier
    from pyjuice_lvd.estimators.hclt import HCLT, SparseHCLT
    from pyjuice_lvd.estimators.lvd import LVD, LVDPG
    from pyjuice_lvd.estimators.windows import Windows

__all__ = [
    "EINET",
    "HCLT",
    "LVD",
    "LVDPG",
    "RATSPN",
    "Circuit",
    "CircuitBuilder",
    "CircuitClassifier",
    "SparseHCLT",
    "Windows",
    "use_device",
]

_HOMES = {
    "Circuit": "pyjuice_lvd.circuit",
    "CircuitBuilder": "pyjuice_lvd.circuit",
    "CircuitClassifier": "pyjuice_lvd.estimators.classifier",
    "EINET": "pyjuice_lvd.estimators.baselines",
    "HCLT": "pyjuice_lvd.estimators.hclt",
    "LVD": "pyjuice_lvd.estimators.lvd",
    "LVDPG": "pyjuice_lvd.estimators.lvd",
    "RATSPN": "pyjuice_lvd.estimators.baselines",
    "SparseHCLT": "pyjuice_lvd.estimators.hclt",
    "Windows": "pyjuice_lvd.estimators.windows",
    "use_device": "pyjuice_lvd.circuit.devices",
}


def __getattr__(name: str) -> Any:
    """Import a public name where it is first used: `lvd-juice --help` waits for no PyTorch and no scikit-learn."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
