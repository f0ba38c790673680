"""What there is to choose from: the names that settings, options and files may have."""

from __future__ import annotations

from typing import Any

METHODS = ("lvd-pg", "lvd", "hclt", "sparse-hclt", "rat-spn", "einet", "windows")
OF_PATCHES = ("lvd-pg", "lvd")
"""Methods of models with latents of patches, which a teacher comes before."""
BASELINES = ("hclt", "sparse-hclt", "rat-spn", "einet")
"""Methods of one circuit over whole images, or over the rows of a table."""
HCLTS = ("hclt", "sparse-hclt")
"""Those of them that learn hidden Chow-Liu trees, and need the mutual information of all pairs of variables."""
_PATCHES = ("data", "teacher", "clusters", "refining", "circuit", "growing", "prior", "finetuning", "offsets")
SECTIONS = {
    "lvd-pg": _PATCHES,
    "lvd": tuple(name for name in _PATCHES if name != "growing"),
    "hclt": ("data", "hclt"),
    "sparse-hclt": ("data", "hclt", "sparse_hclt"),
    "rat-spn": ("data", "rat_spn"),
    "einet": ("data", "einet"),
    "windows": ("data", "windows"),
}
"""The sections of the settings that each method has a use for."""
WITHOUT_OFFSETS = ("growing", "prior", "finetuning")
"""Those of them that models with offsets have no use for."""
DEVICES = ("auto", "cpu", "cuda")
"""Where the teacher runs."""
SPLITS = ("train", "valid", "test")
"""Parts of data: to learn from, to stop early by, to measure on."""
PHOTO_SIZES = (16, 32)
"""Sides of the images that `photos` is cut into."""
COLOR_NAMES = ("ycocg", "rgb", "ycc709")
"""Colour transforms."""
DECODERS = ("independent", "convolutional")
"""Of the teacher: each patch is decoded from its own code alone, or from its neighbours' codes too."""
STARTS = ("random", "clusters")
"""Where the parameters of an HCLT start."""
LEAVES = ("categorical", "binomial", "logistic", "poisson", "gaussian")
"""Kinds of inputs: a probability for each category; a binomial, or a discretised logistic, over ordered ones; a Poisson
over counts; a Gaussian over real numbers."""
LEAVES_OF_LEVELS = LEAVES[:3]
"""Those over integers 0..C-1, as images and tables of integers have."""
REGIONS = ("auto", "random", "grid")
"""The region graph of an EiNet: by chance, or over the pixels of images; `auto`: a grid for images, else by chance."""
FIELD = "field"
TREES = ("lines", "combs", "rows", "columns", "chow-liu", FIELD)
"""Over the positions of an image: lines of hidden kinds, along rows and along columns; combs, whose teeth run along the
rows and along the columns; one of the combs alone; a hidden Chow-Liu tree; or combs of states and offsets."""
NEW_HEADS = ("double", "one")
"""Of progressive growing: one for each cluster that is divided, or one in each round."""
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {"start": 1, "tree_per_head": False, "quantized": False, "stickiness": 0.0, "new_heads": "double"},
    "reference": {"start": 2, "tree_per_head": True, "quantized": True, "stickiness": 1.0, "new_heads": "one"},
}
"""Of progressive growing: the paper's text, and the code released with it. Naming one sets these of its settings."""
