"""The settings of a run: what there is to choose, and how presets, files and options are put together."""

from pyjuice_lvd.settings.sections import (
    BASELINES,
    DEVICES,
    METHODS,
    CircuitSettings,
    ClusterSettings,
    DataSettings,
    FinetuningSettings,
    GrowingSettings,
    HCLTSettings,
    PriorSettings,
    RatSpnSettings,
    RefiningSettings,
    Settings,
    preset_names,
    resolve,
)

__all__ = [
    "BASELINES",
    "DEVICES",
    "METHODS",
    "CircuitSettings",
    "ClusterSettings",
    "DataSettings",
    "FinetuningSettings",
    "GrowingSettings",
    "HCLTSettings",
    "PriorSettings",
    "RatSpnSettings",
    "RefiningSettings",
    "Settings",
    "preset_names",
    "resolve",
]
