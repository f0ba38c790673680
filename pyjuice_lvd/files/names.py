"""The names of a run's files, and of those in the folder of its model."""

from __future__ import annotations

# In the run's directory.
SETTINGS = "settings.toml"
DATA = "data.json"
METRICS = "metrics.jsonl"
RESULT = "result.json"
LOCK = ".lock"
GAP = "gap.json"
REPORT = "report.html"
RECONSTRUCTIONS, TRAINING, GROWTH, GAP_PICTURE = "reconstructions.png", "training.png", "growth.png", "gap.png"
MODEL = "model"
"""The folder of the model."""

# In the folder of a model.
DESCRIPTION = "model.json"
"""What the model is; written last."""
COLUMNS = "columns.json"
"""The names of a table's columns, if it has any."""
CIRCUIT = "circuit.safetensors"
PRIOR = "prior.safetensors"
EMISSIONS = "emissions.safetensors"
"""Of a model with offsets: p(j | h), and p_c(d | h) of each channel."""
REFERENCE = "reference.safetensors"
"""Of a model of windows: the weights of the reference levels."""
TEACHER = "teacher.safetensors"
FEATURES = "features.json"
"""In the place of a teacher: which features of another encoder the model learned from."""
LABELS = "labels.safetensors"
CODE_PRIOR, CENTRES = "code-prior.safetensors", "outer-centres.safetensors"

PIECES = "pieces.json"
"""What the finished pieces of work in the folder belong to."""

# Of work that is not finished yet, also in the folder of the model.
TEACHER_IN_TRAINING = "teacher-in-training.safetensors"
OUTER = "outer.safetensors"
FINETUNING = "finetuning.safetensors"
START = "start"
"""The folder of the model with offsets that EM begins with."""
SEARCH = "search.json"
"""Validation likelihoods of the sizes that were tried."""
UNTRAINED, EM = "untrained.safetensors", "em.safetensors"
CODE_PRIOR_IN_TRAINING = "code-prior-in-training.safetensors"


def round_of(number: int) -> str:
    """Name the circuit that a round of pruning and growing ended with; 0: the one before all rounds."""
    return f"round-{number:04d}.safetensors"


def grown_of(number: int) -> str:
    """Name the circuit that was pruned and grown in a round, and not trained yet."""
    return f"grown-{number:04d}.safetensors"


def em_of(number: int) -> str:
    """Name the checkpoint of a round's EM."""
    return f"em-{number:04d}.safetensors"


def circuit_of(cluster: int) -> str:
    """Name the circuit of an outer cluster."""
    return f"circuit-{cluster:04d}.safetensors"


def channel_circuit_of(shape: int, channel: int) -> str:
    """Name the circuit of a channel of a shape."""
    return f"circuit-{shape:04d}-{channel}.safetensors"


def heads_of(cluster: int) -> str:
    """Name the heads of an outer cluster's patches, while other clusters have no circuit yet."""
    return f"heads-{cluster:04d}.safetensors"
