"""The settings of a run: what there is to choose, and how presets, files and options are put together."""

from pyjuice_lvd.settings.choices import BASELINES, DEVICES, FIELD, HCLTS, METHODS, OF_PATCHES, SPLITS
from pyjuice_lvd.settings.kept import check_whole, kept, restored
from pyjuice_lvd.settings.resolve import preset_names, resolve
from pyjuice_lvd.settings.sections import (
    CircuitSettings,
    ClusterSettings,
    DataSettings,
    EinetSettings,
    FinetuningSettings,
    GrowingSettings,
    HCLTSettings,
    OffsetSettings,
    PriorSettings,
    RatSpnSettings,
    RefiningSettings,
    Settings,
    SparseHCLTSettings,
    TeacherSettings,
    WindowSettings,
    setting_names,
)

__all__ = [
    "BASELINES",
    "DEVICES",
    "FIELD",
    "HCLTS",
    "METHODS",
    "OF_PATCHES",
    "SPLITS",
    "CircuitSettings",
    "ClusterSettings",
    "DataSettings",
    "EinetSettings",
    "FinetuningSettings",
    "GrowingSettings",
    "HCLTSettings",
    "OffsetSettings",
    "PriorSettings",
    "RatSpnSettings",
    "RefiningSettings",
    "Settings",
    "SparseHCLTSettings",
    "TeacherSettings",
    "WindowSettings",
    "check_whole",
    "kept",
    "preset_names",
    "resolve",
    "restored",
    "setting_names",
]
