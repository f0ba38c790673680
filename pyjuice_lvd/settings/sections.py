"""The complete settings of a run: typed, checked, and the same in Python, in TOML and on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Self

from pyjuice_lvd.checks import CROP, NONNEGATIVE, POSITIVE, PSEUDOCOUNT, Within, among, least, require
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.settings.choices import (
    COLOR_NAMES,
    DECODERS,
    DEVICES,
    LEAVES_OF_LEVELS,
    METHODS,
    NEW_HEADS,
    PHOTO_SIZES,
    REGIONS,
    STARTS,
    TREES,
    VARIANTS,
)
from pyjuice_lvd.settings.tables import Section, from_table, lists, names

_BITS = Within(lambda value: value < 2**63, "an integer of 64 bits")
Count = Annotated[int, least(1), _BITS]
Several = Annotated[int, least(2), _BITS]
CountOrNone = Annotated[int, least(0), _BITS]
Pseudocount = Annotated[float, PSEUDOCOUNT]
Steps = Annotated[
    tuple[float, float],
    Within(lambda steps: all(0 < step <= 1 for step in steps), "two numbers above 0 and at most 1"),
]
"""EM's step size in the first and in the last epoch, or round; linear in between."""
Part = Annotated[float, Within(lambda part: 0 < part < 1, "a number above 0 and below 1")]
Share = Annotated[float, Within(lambda share: 0 < share <= 1, "a number above 0 and at most 1")]
Noise = Annotated[float, Within(lambda noise: 0 <= noise <= 1e20, "a finite number, 0 or above and at most 1e20")]
Offsets = Annotated[
    tuple[int, ...], Within(lambda steps: all(step >= 1 and 256 % step == 0 for step in steps), "divisors of 256")
]
"""The grid of each channel's offsets, or one for all; none: no offsets."""
Windows = Annotated[
    tuple[int, ...], Within(lambda widths: bool(widths) and all(0 <= w <= 128 for w in widths), "some of 0 to 128")
]
Cuts = Annotated[
    tuple[int, ...], Within(lambda steps: bool(steps) and all(1 <= s < 2**63 for s in steps), "integers of at least 1")
]
Leaves = Annotated[str, among(*LEAVES_OF_LEVELS)]
Sides = Annotated[tuple[int, int], Within(lambda sides: min(sides) >= 1, "height and width, integers of at least 1")]

_OF_VARIANT: Any = object()
"""Stands for the value that a variant sets, until it is known which."""


@dataclass(frozen=True)
class DataSettings(Section, table="data"):
    """`[data]`: which pixels are modelled, and how a source without a split of its own is split."""

    size: Annotated[int, among(*PHOTO_SIZES)] = 32
    """Side of the images that `photos` is cut into."""
    color: Annotated[str, among(*COLOR_NAMES)] = COLOR_NAMES[0]
    """Colour transform."""
    crop: Annotated[str, CROP] = ""
    """Height and width of the top-left part that is modelled, as `16x16`; empty: whole images."""
    valid_fraction: Part = 0.1
    test_fraction: Part = 0.1
    flip: bool = False
    """Whether clusters, circuits and p(z) also learn from each training image mirrored left to right."""

    def __post_init__(self) -> None:
        super().__post_init__()
        both = self.valid_fraction + self.test_fraction
        require(both < 1, "data.valid_fraction + data.test_fraction", both, "a sum below 1: the rest is for training")


@dataclass(frozen=True, kw_only=True)
class TeacherSettings(Section, table="teacher"):
    """`[teacher]`: the VQ-VAE teacher and its training."""

    patch: Sides = (4, 4)
    """Height and width of a patch, in pixels; images must be a whole number of patches."""
    decoder: Annotated[str, among(*DECODERS)] = DECODERS[0]
    """`independent`: each patch is decoded from its own code alone; `convolutional`: from its neighbours' codes too."""
    channels: Count = 64
    """Width of the hidden layers."""
    blocks: CountOrNone = 2
    """Residual blocks of the encoder, and of the convolutional decoder; each widens its view by one patch a side."""
    code_dim: Several = 16
    """Dimension of the features h and of the codes."""
    codes: Several = 256
    """Size of the codebook."""
    mixtures: Count = 5
    """Logistic components of each pixel's distribution."""
    epochs: Count = 20
    batch_size: Count = 64
    """Images in one training step."""
    learning_rate: Annotated[float, POSITIVE] = 1e-3
    """Adam's largest step size: reached after a linear warm-up, then lowered to zero along a cosine."""
    commitment: Annotated[float, NONNEGATIVE] = 0.25
    """Weight (beta) of the commitment loss."""
    flip: bool = False
    """Whether training images are mirrored left to right at random."""


@dataclass(frozen=True)
class ClusterSettings(Section, table="clusters"):
    """`[clusters]`: how the teacher's features are clustered; a patch's latent has `outer * inner` values."""

    outer: CountOrNone = 0
    """N1: each outer cluster has a circuit of its own. 0: one for each 10,000 training patches, from 2 to 32."""
    inner: Count = 4
    """N2: each inner cluster is a head of its outer cluster's circuit."""
    tied: bool = True
    """Whether all positions share clusters and circuits; false: each has as many of its own."""


@dataclass(frozen=True)
class RefiningSettings(Section, table="refining"):
    """`[refining]`: outer clusters that small circuits divide anew, before each has a circuit of its own."""

    rounds: CountOrNone = 0
    """0: the outer clusters stay those of the features."""
    latents: Count = 16
    """Hidden states of each small circuit."""
    patches: Count = 15_000
    """For each cluster, so many take part in the rounds."""
    batch_size: Count = 512
    step_size: Steps = (0.3, 0.05)
    """EM's step size in the first and in the last round; linear in between."""
    pseudocount: Pseudocount = 0.1


@dataclass(frozen=True)
class CircuitSettings(Section, table="circuit"):
    """`[circuit]`: p(x|z), one multi-headed HCLT for each outer cluster, trained by EM on labelled patches."""

    latents: Count = 16
    start: Annotated[str, among(*STARTS)] = STARTS[1]
    """Where parameters start: `random`, or `clusters`, at hidden states that K-means finds in the patches."""
    epochs: Count = 50
    batch_size: Count = 256
    step_size: Steps = (0.1, 0.01)
    """EM's step size in the first and in the last epoch; linear in between."""
    pseudocount: Pseudocount = 0.1
    patience: CountOrNone = 5
    """Epochs without a better likelihood of the validation images' patches that end EM; 0: all epochs run."""


@dataclass(frozen=True)
class GrowingSettings(Section, table="growing"):
    """`[growing]`: the rounds of progressive growing (paper, Sec. 4 and Appendix B)."""

    variant: Annotated[str, among(*VARIANTS)] = "paper"
    """`paper`, or `reference`: as the code released with it does. Sets what is left out of what the two differ in."""
    start: Count = _OF_VARIANT
    """Heads in the first round."""
    epochs: Count = 50
    """Epochs of EM in each round but the last, which has `circuit.epochs`."""
    tree_per_head: bool = _OF_VARIANT
    """A Chow-Liu tree for each head of the first round, in place of one for all."""
    quantized: bool = _OF_VARIANT
    """Cluster the teacher's codes, in place of its features before quantisation."""
    min_flow: Annotated[float, NONNEGATIVE] = 1e-4
    """Of a cluster's patches: edges with no more flow are pruned."""
    stickiness: Annotated[float, NONNEGATIVE] = _OF_VARIANT
    """Nats in favour of a patch's present head as it is relabelled."""
    share: Share = 0.4
    """Of the patches: the clusters of lowest likelihood are divided until they hold so many."""
    new_heads: Annotated[str, among(*NEW_HEADS)] = _OF_VARIANT
    """`double`: one for each cluster that is divided; `one`: one in each round."""
    threshold: Annotated[float, NONNEGATIVE] = 0.1
    """Copy units with a flow of at least so many of these patches; below 1, of this fraction of them."""
    noise: Noise = 0.2
    """Standard deviation of the factor that parameters are multiplied by as they are copied."""

    def __post_init__(self) -> None:
        for name, value in VARIANTS.get(self.variant, {}).items():
            if getattr(self, name) is _OF_VARIANT:
                object.__setattr__(self, name, value)
        super().__post_init__()
        # A copy by `dataclasses.replace` with another variant has all that the first one set.
        found = {name: getattr(self, name) for name in VARIANTS[self.variant]}
        for other, own in VARIANTS.items():
            if other != self.variant and found == own:
                raise InputError(
                    f"growing.variant: found {self.variant!r} with all that sets {other!r} apart, wanted new "
                    f"GrowingSettings(variant={self.variant!r}) or resolve(...): a copy keeps its values"
                )


@dataclass(frozen=True)
class PriorSettings(Section, table="prior"):
    """`[prior]`: p(z), an HCLT over all positions, trained by EM on the labels z, then by EM on p(x)."""

    latents: Count = 16
    epochs: Count = 30
    """Epochs on the labels."""
    soft_epochs: CountOrNone = 10
    """Epochs of EM on p(x), at most."""
    batch_size: Count = 256
    step_size: Steps = (0.1, 0.01)
    soft_step_size: Steps = (0.1, 0.01)
    pseudocount: Pseudocount = 0.1
    memory: Annotated[float, POSITIVE] = 4.0
    """GiB of evidence for p(z) to keep while EM on p(x) goes on; more is computed anew in each epoch."""
    patience: Count = 3
    """EM on p(x) ends after so many epochs without a better validation likelihood."""


@dataclass(frozen=True)
class FinetuningSettings(Section, table="finetuning"):
    """`[finetuning]`: EM on p(x) end to end, p(z) and the patch circuits together, after all else."""

    epochs: CountOrNone = 5
    """At most; 0: none."""
    batch_size: Count = 256
    """Images in one step."""
    candidates: CountOrNone = 0
    """Outer clusters that a patch is tried under, those that refining found most probable; 0: all."""
    step_size: Steps = (0.05, 0.01)
    pseudocount: Pseudocount = 0.1
    """Of the patch circuits; p(z) has `prior.pseudocount`."""
    patience: Count = 2
    """Ends after so many epochs without a better validation likelihood; the best parameters are kept."""


@dataclass(frozen=True)
class OffsetSettings(Section, table="offsets"):
    """`[offsets]`: patches are shapes under offsets, below states of the positions (docs/offsets.md).

    Where there are steps, `clusters.outer` is the number of shapes; `growing` and `finetuning` are not used, nor is
    `prior`, but for a Chow-Liu tree.
    """

    steps: Offsets = ()
    """Between offsets, in levels: of each channel, or one for all; a grey image has the first. 256: a channel without.
    Empty: no offsets at all."""
    windows: Windows = (48, 24, 24)
    """The largest residual of a shape's anchor pixel, in levels: of each channel, or one for all."""
    joins: Count = 32
    """Heads of each shape's circuits, at which its channels meet."""
    states: Count = 64
    """Values of the hidden state of a position."""
    trees: Annotated[str, among(*TREES)] = TREES[0]
    """Of p(h): a mixture of `lines` of both directions, or of both `combs`; one comb, of `rows` or of `columns`; a
    hidden Chow-Liu tree, `chow-liu`, learned from labels as `[prior]` says; or a `field`, both combs, of states and
    offsets: neighbours know of each other's offsets to the step."""
    groups: Count = 4
    """Of the states of a field: offsets go on from offsets as the groups of two neighbours say."""
    kinds: Count = 8
    """Hidden kinds of lines, each with transitions of its own."""
    epochs: Count = 6
    """Of EM on p(x) end to end, at most."""
    batch_size: Count = 128
    """Images in one step."""
    candidates: CountOrNone = 3
    """Shapes that a patch is tried under in training, those that refining found most probable; 0: all."""
    step_size: Steps = (0.5, 0.05)
    """EM's step size in the first and in the last batch of all epochs; linear in between."""
    pseudocount: Pseudocount = 0.01
    """Of the shapes' circuits."""
    prior_pseudocount: Pseudocount = 1.0
    """Of p(h), p(j | h) and p(d | h)."""
    patience: Count = 2
    """Ends after so many epochs without a better validation likelihood; the best parameters are kept."""

    def of_channels(self, channels: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Give the steps and the windows of so many channels; raises InputError where there are others."""
        found = []
        for name in ("steps", "windows"):
            values = getattr(self, name)
            own = values[:channels] if channels == 1 else values * (channels if len(values) == 1 else 1)
            if len(own) != channels:
                raise InputError(
                    f"offsets.{name}: found {len(values)} for {channels} channels, wanted one or {channels}"
                )
            found.append(own)
        return found[0], found[1]


@dataclass(frozen=True)
class HCLTSettings(Section, table="hclt"):
    """`[hclt]`: method `hclt`, a mixture of hidden Chow-Liu trees over all variables."""

    search: bool = True
    """Of a table: trees, latents and pseudocount are chosen by the validation split, unless one of them is set to
    another value than its default."""
    latents: Count = 16
    leaves: Leaves = LEAVES_OF_LEVELS[0]
    """Kind of the inputs."""
    trees: Count = 1
    start: Annotated[str, among(*STARTS)] = STARTS[0]
    """Where parameters start: at random, or, for ordered values such as grey levels, from `clusters`: hidden states
    that K-means finds."""
    epochs: Count = 50
    """At most: see `patience`."""
    batch_size: Count = 256
    step_size: Steps = (0.8, 0.02)
    pseudocount: Pseudocount = 0.003
    patience: Count = 20
    """EM ends after so many epochs without a better validation likelihood."""


@dataclass(frozen=True)
class SparseHCLTSettings(Section, table="sparse_hclt"):
    """`[sparse_hclt]`: method `sparse-hclt`, an HCLT as `[hclt]` has it, then pruned and grown by turns."""

    rounds: Count = 4
    """At most: the last is one that did not improve the validation likelihood."""
    keep: Part = 0.25
    """Share of the sums' edges that pruning leaves, those with the largest flows."""
    noise: Noise = 0.3
    """Of growing: the deviation of what weights and inputs are multiplied by."""
    epochs: Count = 20
    """Of EM in each round, at most, with the batches, the pseudocount and the patience of `[hclt]`."""
    step_size: Steps = (0.3, 0.02)
    """EM's step size in the first and in the last epoch of each round; linear in between."""


@dataclass(frozen=True)
class EinetSettings(Section, table="einet"):
    """`[einet]`: method `einet`, an einsum network over all variables."""

    sums: Count = 16
    """Units of each region, and of each partition of one."""
    regions: Annotated[str, among(*REGIONS)] = REGIONS[0]
    """A `random` graph, of `depth` and `replicas`; a `grid` over the pixels of images, cut at `steps`; `auto`: a grid
    for images, else a random one."""
    steps: Cuts = (8, 4, 2, 1)
    """Of a grid: rectangles are cut at the multiples of the first step that has any within, in pixels."""
    depth: Count = 6
    replicas: Count = 8
    leaves: Leaves = LEAVES_OF_LEVELS[0]
    """The kind of inputs."""
    epochs: Count = 50
    """At most: see `patience`."""
    batch_size: Count = 256
    step_size: Steps = (0.3, 0.02)
    pseudocount: Pseudocount = 0.03
    patience: Count = 20


@dataclass(frozen=True)
class RatSpnSettings(Section, table="rat_spn"):
    """`[rat_spn]`: method `rat-spn`, a random and tensorised sum-product network over all variables."""

    depth: Count = 6
    replicas: Count = 8
    sums: Count = 8
    inputs: Count = 8
    leaves: Leaves = LEAVES_OF_LEVELS[0]
    epochs: Count = 50
    """At most: see `patience`."""
    batch_size: Count = 256
    step_size: Steps = (0.3, 0.02)
    pseudocount: Pseudocount = 0.03
    patience: Count = 20


@dataclass(frozen=True)
class WindowSettings(Section, table="windows"):
    """`[windows]`: method `windows`, pixels given those before them near by, by a mixture of hidden Chow-Liu trees."""

    reach: Annotated[int, Within(lambda reach: 1 <= reach <= 8, "1 to 8")] = 3
    """Rows above, and columns to each side, that say what level a pixel is expected to have."""
    pixels: Count = 1_000_000
    """Windows to learn from, at most, drawn from all pixels of the training images."""
    trees: Count = 4
    """One for each cluster of windows."""
    latents: Count = 64
    start: Annotated[str, among(*STARTS)] = STARTS[1]
    """Where parameters start: at random, or from `clusters`: hidden states that K-means finds."""
    epochs: Count = 10
    """At most: see `patience`."""
    batch_size: Count = 8192
    """Windows in one step."""
    step_size: Steps = (0.5, 0.05)
    pseudocount: Pseudocount = 0.03
    patience: Count = 10
    """EM ends after so many epochs without a better validation likelihood."""


@dataclass(frozen=True)
class Settings(Section):
    """A run's complete settings; docs/settings.md describes each. A value out of range is an InputError.

    Only `threads` and `device` say how a run is computed rather than what is.
    """

    method: Annotated[str, among(*METHODS)] = METHODS[0]
    seed: Annotated[int, Within(lambda seed: 0 <= seed < 2**32, "0 to 4294967295")] = 0
    threads: CountOrNone = 0
    """0: `LVD_THREADS`, else all cores."""
    device: Annotated[str, among(*DEVICES)] = DEVICES[0]
    data: DataSettings = field(default_factory=DataSettings)
    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    clusters: ClusterSettings = field(default_factory=ClusterSettings)
    refining: RefiningSettings = field(default_factory=RefiningSettings)
    circuit: CircuitSettings = field(default_factory=CircuitSettings)
    growing: GrowingSettings = field(default_factory=GrowingSettings)
    prior: PriorSettings = field(default_factory=PriorSettings)
    finetuning: FinetuningSettings = field(default_factory=FinetuningSettings)
    offsets: OffsetSettings = field(default_factory=OffsetSettings)
    hclt: HCLTSettings = field(default_factory=HCLTSettings)
    sparse_hclt: SparseHCLTSettings = field(default_factory=SparseHCLTSettings)
    einet: EinetSettings = field(default_factory=EinetSettings)
    windows: WindowSettings = field(default_factory=WindowSettings)
    rat_spn: RatSpnSettings = field(default_factory=RatSpnSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.finetuning.candidates and not self.refining.rounds:
            raise InputError(
                f"finetuning.candidates: found {self.finetuning.candidates} with refining.rounds = 0, "
                "wanted 0 or at least one round: refining finds the candidates"
            )
        if self.offsets.steps and not self.clusters.tied:
            raise InputError(
                "clusters.tied: found false with offsets.steps, wanted true: all positions share the shapes"
            )

    @property
    def loading(self) -> dict[str, Any]:
        """What `data.load` has to know of the settings: its arguments, by name."""
        own = self.data
        return {
            "method": self.method, "crop": own.crop, "size": own.size, "seed": self.seed,
            "valid_fraction": own.valid_fraction, "test_fraction": own.test_fraction,
        }  # fmt: skip

    @classmethod
    def from_dict(cls, table: Mapping[str, Any]) -> Self:
        """Make settings from nested tables, as `to_dict` and TOML files have them; what is left out is the default.

        Raises InputError for an unknown name, a value of the wrong type or one out of range.
        """
        return from_table(cls, table)

    def to_dict(self) -> dict[str, Any]:
        """Give the settings as nested tables of TOML (and JSON) values; `from_dict` gives equal settings back."""
        table: dict[str, Any] = lists(asdict(self))
        return table


def setting_names() -> list[str]:
    """Name every setting, as `seed` and `circuit.latents`."""
    return names(Settings)
