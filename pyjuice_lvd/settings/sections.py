"""The complete settings of a run: typed, checked, and the same in Python, in TOML and on the command line."""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from importlib import resources
from typing import Any, Self, TypeVar, get_type_hints

from pyjuice_lvd.checks import at_least, check_pseudocount, nonnegative, one_of, require, type_fields, typed
from pyjuice_lvd.circuit.hclt import STARTS
from pyjuice_lvd.data.color import COLORS
from pyjuice_lvd.data.images import parse_crop
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.formats import read_toml
from pyjuice_lvd.teacher.settings import TeacherSettings

METHODS = ("lvd-pg", "lvd", "hclt", "rat-spn")
BASELINES = ("hclt", "rat-spn")
"""Methods of one circuit over whole images, or over the rows of a table."""
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {"start": 1, "tree_per_head": False, "quantized": False, "stickiness": 0.0, "new_heads": "double"},
    "reference": {"start": 2, "tree_per_head": True, "quantized": True, "stickiness": 1.0, "new_heads": "one"},
}
"""Of progressive growing: the paper's text, and the code released with it. Naming one sets these of its settings."""
NEW_HEADS = ("double", "one")
DEVICES = ("auto", "cpu", "cuda")
PHOTO_SIZES = (16, 32)

_T = TypeVar("_T")


@dataclass(frozen=True)
class DataSettings:
    """`[data]`: which pixels are modelled, and how a source without a split of its own is split."""

    size: int = 32
    """Side of the images that `photos` is cut into."""
    color: str = "ycocg"
    """Colour transform."""
    crop: str = ""
    """Height and width of the top-left part that is modelled, as `16x16`; empty: whole images."""
    valid_fraction: float = 0.1
    test_fraction: float = 0.1
    flip: bool = False
    """Whether clusters, circuits and p(z) also learn from each training image mirrored left to right."""

    def __post_init__(self) -> None:
        type_fields(self, "data.")
        one_of("data.size", self.size, PHOTO_SIZES)
        one_of("data.color", self.color, tuple(COLORS))
        if self.crop:
            parse_crop(self.crop)
        for name in ("valid_fraction", "test_fraction"):
            value = getattr(self, name)
            require(0 < value < 1, f"data.{name}", value, "a number above 0 and below 1")
        both = self.valid_fraction + self.test_fraction
        require(both < 1, "data.valid_fraction + data.test_fraction", both, "a sum below 1: the rest is for training")


@dataclass(frozen=True)
class ClusterSettings:
    """`[clusters]`: how the teacher's features are clustered; a patch's latent has `outer * inner` values."""

    outer: int = 32
    """N1: each outer cluster has a circuit of its own."""
    inner: int = 4
    """N2: each inner cluster is a head of its outer cluster's circuit."""
    tied: bool = True
    """Whether all positions share clusters and circuits; false: each has as many of its own."""

    def __post_init__(self) -> None:
        type_fields(self, "clusters.")
        at_least("clusters.outer", self.outer, 1)
        at_least("clusters.inner", self.inner, 1)


@dataclass(frozen=True)
class RefiningSettings:
    """`[refining]`: outer clusters that small circuits divide anew, before each has a circuit of its own."""

    rounds: int = 0
    """0: the outer clusters stay those of the features."""
    latents: int = 16
    """Hidden states of each small circuit."""
    patches: int = 15_000
    """For each cluster, so many take part in the rounds."""
    batch_size: int = 512
    step_size: tuple[float, float] = (0.3, 0.05)
    """EM's step size in the first and in the last round; linear in between."""
    pseudocount: float = 0.1

    def __post_init__(self) -> None:
        type_fields(self, "refining.")
        at_least("refining.rounds", self.rounds, 0)
        at_least("refining.latents", self.latents, 1)
        at_least("refining.patches", self.patches, 1)
        at_least("refining.batch_size", self.batch_size, 1)
        _steps("refining.step_size", self.step_size)
        check_pseudocount("refining.pseudocount", self.pseudocount)


@dataclass(frozen=True)
class CircuitSettings:
    """`[circuit]`: p(x|z), one multi-headed HCLT for each outer cluster, trained by EM on labelled patches."""

    latents: int = 16
    start: str = STARTS[1]
    """Where parameters start: `random`, or `clusters`, at hidden states that K-means finds in the patches."""
    epochs: int = 50
    batch_size: int = 256
    step_size: tuple[float, float] = (0.1, 0.01)
    """EM's step size in the first and in the last epoch; linear in between."""
    pseudocount: float = 0.1

    def __post_init__(self) -> None:
        type_fields(self, "circuit.")
        one_of("circuit.start", self.start, STARTS)
        at_least("circuit.latents", self.latents, 1)
        at_least("circuit.epochs", self.epochs, 1)
        at_least("circuit.batch_size", self.batch_size, 1)
        _steps("circuit.step_size", self.step_size)
        check_pseudocount("circuit.pseudocount", self.pseudocount)


@dataclass(frozen=True)
class GrowingSettings:
    """`[growing]`: the rounds of progressive growing (paper, Sec. 4 and Appendix B)."""

    variant: str = "paper"
    """`paper`, or `reference`: as the code released with it does. Sets the other settings that the two differ in."""
    start: int = 1
    """Heads in the first round."""
    epochs: int = 50
    """Epochs of EM in each round but the last, which has `circuit.epochs`."""
    tree_per_head: bool = False
    """A Chow-Liu tree for each head of the first round, in place of one for all."""
    quantized: bool = False
    """Cluster the teacher's codes, in place of its features before quantisation."""
    min_flow: float = 1e-4
    """Of a cluster's patches: edges with no more flow are pruned."""
    stickiness: float = 0.0
    """Nats in favour of a patch's present head as it is relabelled."""
    share: float = 0.4
    """Of the patches: the clusters of lowest likelihood are divided until they hold so many."""
    new_heads: str = NEW_HEADS[0]
    """`double`: one for each cluster that is divided; `one`: one in each round."""
    threshold: float = 0.1
    """Copy units with a flow of at least so many of these patches; below 1, of this fraction of them."""
    noise: float = 0.2
    """Standard deviation of the factor that parameters are multiplied by as they are copied."""

    def __post_init__(self) -> None:
        type_fields(self, "growing.")
        one_of("growing.variant", self.variant, tuple(VARIANTS))
        at_least("growing.start", self.start, 1)
        at_least("growing.epochs", self.epochs, 1)
        nonnegative("growing.min_flow", self.min_flow)
        nonnegative("growing.stickiness", self.stickiness)
        require(0 < self.share <= 1, "growing.share", self.share, "a number above 0 and at most 1")
        one_of("growing.new_heads", self.new_heads, NEW_HEADS)
        nonnegative("growing.threshold", self.threshold)
        require(0 <= self.noise <= 1e20, "growing.noise", self.noise, "a finite number, 0 or above and at most 1e20")


@dataclass(frozen=True)
class PriorSettings:
    """`[prior]`: p(z), an HCLT over all positions, trained by EM on the labels z, then by EM on p(x)."""

    latents: int = 16
    epochs: int = 30
    """Epochs on the labels."""
    soft_epochs: int = 10
    """Epochs of EM on p(x), at most."""
    batch_size: int = 256
    step_size: tuple[float, float] = (0.1, 0.01)
    soft_step_size: tuple[float, float] = (0.1, 0.01)
    pseudocount: float = 0.1
    memory: float = 4.0
    """GiB of evidence for p(z) to keep while EM on p(x) goes on; more is computed anew in each epoch."""
    patience: int = 3
    """EM on p(x) ends after so many epochs without a better validation likelihood."""

    def __post_init__(self) -> None:
        type_fields(self, "prior.")
        at_least("prior.latents", self.latents, 1)
        at_least("prior.epochs", self.epochs, 1)
        at_least("prior.soft_epochs", self.soft_epochs, 0)
        at_least("prior.batch_size", self.batch_size, 1)
        _steps("prior.step_size", self.step_size)
        _steps("prior.soft_step_size", self.soft_step_size)
        check_pseudocount("prior.pseudocount", self.pseudocount)
        require(0 < self.memory < math.inf, "prior.memory", self.memory, "a finite number above 0")
        at_least("prior.patience", self.patience, 1)


@dataclass(frozen=True)
class FinetuningSettings:
    """`[finetuning]`: EM on p(x) end to end, p(z) and the patch circuits together, after all else."""

    epochs: int = 5
    """At most; 0: none."""
    batch_size: int = 256
    """Images in one step."""
    candidates: int = 0
    """Outer clusters that a patch is tried under, those that refining found most probable; 0: all."""
    step_size: tuple[float, float] = (0.05, 0.01)
    pseudocount: float = 0.1
    """Of the patch circuits; p(z) has `prior.pseudocount`."""
    patience: int = 2
    """Ends after so many epochs without a better validation likelihood; the best parameters are kept."""

    def __post_init__(self) -> None:
        type_fields(self, "finetuning.")
        at_least("finetuning.epochs", self.epochs, 0)
        at_least("finetuning.batch_size", self.batch_size, 1)
        at_least("finetuning.candidates", self.candidates, 0)
        _steps("finetuning.step_size", self.step_size)
        check_pseudocount("finetuning.pseudocount", self.pseudocount)
        at_least("finetuning.patience", self.patience, 1)


@dataclass(frozen=True)
class HCLTSettings:
    """`[hclt]`: method `hclt`, a mixture of hidden Chow-Liu trees over all variables."""

    latents: int = 16
    trees: int = 1
    epochs: int = 50
    """At most: see `patience`."""
    batch_size: int = 256
    step_size: tuple[float, float] = (0.8, 0.02)
    pseudocount: float = 0.003
    patience: int = 20
    """EM ends after so many epochs without a better validation likelihood."""

    def __post_init__(self) -> None:
        type_fields(self, "hclt.")
        at_least("hclt.latents", self.latents, 1)
        at_least("hclt.trees", self.trees, 1)
        _em("hclt", self)


@dataclass(frozen=True)
class RatSpnSettings:
    """`[rat_spn]`: method `rat-spn`, a random and tensorised sum-product network over all variables."""

    depth: int = 6
    replicas: int = 8
    sums: int = 8
    inputs: int = 8
    epochs: int = 50
    """At most: see `patience`."""
    batch_size: int = 256
    step_size: tuple[float, float] = (0.3, 0.02)
    pseudocount: float = 0.03
    patience: int = 20

    def __post_init__(self) -> None:
        type_fields(self, "rat_spn.")
        for name in ("depth", "replicas", "sums", "inputs"):
            at_least(f"rat_spn.{name}", getattr(self, name), 1)
        _em("rat_spn", self)


@dataclass(frozen=True)
class Settings:
    """A run's complete settings; docs/settings.md describes each. A value out of range is an InputError.

    Only `threads` and `device` say how a run is computed rather than what is.
    """

    method: str = METHODS[0]
    seed: int = 0
    threads: int = 0
    """0: `LVD_THREADS`, else all cores."""
    device: str = "auto"
    data: DataSettings = field(default_factory=DataSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    clusters: ClusterSettings = field(default_factory=ClusterSettings)
    refining: RefiningSettings = field(default_factory=RefiningSettings)
    circuit: CircuitSettings = field(default_factory=CircuitSettings)
    growing: GrowingSettings = field(default_factory=GrowingSettings)
    prior: PriorSettings = field(default_factory=PriorSettings)
    finetuning: FinetuningSettings = field(default_factory=FinetuningSettings)
    hclt: HCLTSettings = field(default_factory=HCLTSettings)
    rat_spn: RatSpnSettings = field(default_factory=RatSpnSettings)

    def __post_init__(self) -> None:
        type_fields(self, "")
        one_of("method", self.method, METHODS)
        require(0 <= self.seed < 2**32, "seed", self.seed, "0 to 4294967295")
        at_least("threads", self.threads, 0)
        one_of("device", self.device, DEVICES)
        if self.finetuning.candidates and not self.refining.rounds:
            raise InputError(
                f"finetuning.candidates: found {self.finetuning.candidates} with refining.rounds = 0, "
                "wanted 0 or at least one round: refining finds the candidates"
            )

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Self:
        """Make settings from nested tables, as `to_dict` and TOML files have them; what is left out is the default.

        Raises InputError for an unknown name, a value of the wrong type or one out of range.
        """
        return _construct(cls, _typed(cls, table, "", ""))

    def to_dict(self) -> dict[str, Any]:
        """Give the settings as nested tables of TOML (and JSON) values; `from_dict` gives equal settings back."""
        table: dict[str, Any] = _lists(asdict(self))
        return table


def preset_names() -> tuple[str, ...]:
    """Name the presets that come with the package."""
    files = resources.files("pyjuice_lvd.settings.presets").iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


def resolve(
    preset: str | None = None,
    config: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    assignments: Iterable[str] = (),
    *,
    base: Settings | None = None,
    method: str | None = None,
    color: str | None = None,
    crop: str | None = None,
    seed: int | None = None,
    threads: int | None = None,
    device: str | None = None,
) -> Settings:
    """Put settings together, each layer over the ones before it.

    - `base`: what to start from, such as the settings of a run that is resumed; None: the defaults
    - `preset`: the name of a TOML file that comes with the package (see `preset_names`)
    - `config`: the path of a TOML file, or nested tables as it would have them
    - `assignments`: texts `section.key=value` with TOML's values, where a bare word is a string
    - `method`, `color` and `crop` (of `[data]`), `seed`, `threads`, `device`: single settings; None: not given

    Raises InputError that names the preset, file, assignment or setting, what was found and what is wanted.
    """
    layers: list[tuple[str, dict[str, Any]]] = []
    if preset is not None:
        one_of("preset", preset, preset_names())
        text = (resources.files("pyjuice_lvd.settings.presets") / f"{preset}.toml").read_text(encoding="utf-8")
        layers.append((f"preset {preset}: ", tomllib.loads(text)))
    if isinstance(config, Mapping):
        layers.append(("", dict(config)))
    elif config is not None:
        require(isinstance(config, str | os.PathLike), "config", config, "the path of a TOML file, or nested tables")
        layers.append((f"{os.fspath(config)}: ", read_toml(config)))
    layers += [(f"--set {text}: ", _assignment(text)) for text in assignments]
    options = {"method": method, "seed": seed, "threads": threads, "device": device}
    data = {"color": color, "crop": crop}
    layers.append(("", {**_given(options), "data": _given(data)}))

    table = (Settings() if base is None else base).to_dict()
    for source, layer in layers:
        table = _merged(table, _with_variant(_typed(Settings, layer, "", source)))
    return Settings.from_dict(table)


def _with_variant(layer: dict[str, Any]) -> dict[str, Any]:
    """Add to a layer that names a variant of progressive growing what that sets, under what the layer itself sets."""
    growing = layer.get("growing", {})
    return {**layer, "growing": {**VARIANTS.get(growing.get("variant"), {}), **growing}}


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _assignment(text: str) -> dict[str, Any]:
    """Turn `section.key=value` into nested tables."""
    name, equals, value = (part.strip() for part in text.partition("="))
    if not name or not equals:
        raise InputError(f"--set {text}: wanted section.key=value")
    try:
        table = tomllib.loads(f"value = {value}")
    except ValueError:
        if re.search(r"[\s\"'\[\]{}#=]", value):  # broken TOML rather than a bare word
            raise InputError(f"--set {text}: found {value!r}, wanted a TOML value or a bare word") from None
        table = {"value": value}
    if len(table) > 1:  # a line break in the text, and further keys behind it
        raise InputError(f"--set {text!r}: wanted one section.key=value")
    tree: Any = table["value"]
    for part in reversed(name.split(".")):
        tree = {part: tree}
    return dict(tree)


def _merged(table: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(table)
    for key, value in layer.items():
        merged[key] = _merged(merged[key], value) if isinstance(value, Mapping) else value
    return merged


def _construct(cls: type[_T], table: Mapping[str, Any]) -> _T:
    """Make a settings class from what `_typed` returned."""
    hints = get_type_hints(cls)
    return cls(
        **{key: _construct(hints[key], value) if is_dataclass(hints[key]) else value for key, value in table.items()}
    )


def _typed(cls: type, table: Mapping[str, Any], section: str, source: str) -> dict[str, Any]:
    """Check the names and types of nested tables against a settings class; `source` begins every message."""
    hints = get_type_hints(cls)
    checked: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{section}.{key}" if section else str(key)
        if key not in hints:
            raise InputError(f"{source}unknown setting {name}; {_nearest(name, list(hints), section)}")
        if is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise InputError(f"{source}{name}: found {value!r}, wanted a table [{name}]")
            checked[key] = _typed(hints[key], value, name, source)
        else:
            checked[key] = typed(f"{source}{name}", value, hints[key])
    return checked


def _nearest(name: str, keys: list[str], section: str) -> str:
    """Name the setting that `name` may stand for, or all that its section has."""
    near = difflib.get_close_matches(name.rpartition(".")[2], keys, n=1)
    if near:
        return f"did you mean {section}.{near[0]}?" if section else f"did you mean {near[0]}?"
    # Right key, wrong section: `latents` for `circuit.latents`.
    elsewhere = [full for full in setting_names() if full.rpartition(".")[2] == name.rpartition(".")[2]]
    if elsewhere:
        return f"did you mean {' or '.join(elsewhere)}?"
    return f"valid are {', '.join(keys)}"


def setting_names() -> list[str]:
    """Name every setting, as `seed` and `circuit.latents`."""
    hints = get_type_hints(Settings)
    return [
        name
        for key, hint in hints.items()
        for name in ([f"{key}.{item.name}" for item in fields(hint)] if is_dataclass(hint) else [key])
    ]


def _lists(value: Any) -> Any:
    """Turn tuples into lists, which TOML and JSON have."""
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, tuple) else value


def _em(section: str, settings: HCLTSettings | RatSpnSettings) -> None:
    at_least(f"{section}.epochs", settings.epochs, 1)
    at_least(f"{section}.batch_size", settings.batch_size, 1)
    _steps(f"{section}.step_size", settings.step_size)
    check_pseudocount(f"{section}.pseudocount", settings.pseudocount)
    at_least(f"{section}.patience", settings.patience, 1)


def _steps(name: str, value: tuple[float, float]) -> None:
    require(all(0 < step <= 1 for step in value), name, value, "two numbers above 0 and at most 1")
