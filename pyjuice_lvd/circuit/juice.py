"""Juice.jl (ProbabilisticCircuits.jl) beside us: circuits handed over, both ways; likelihoods to compare with."""

from __future__ import annotations

from typing import NoReturn

import numpy as np
import numpy.typing as npt

from pyjuice_lvd import julia
from pyjuice_lvd.circuit.engine import Engine, Evidence, Rows
from pyjuice_lvd.circuit.rows import Mask, for_engine
from pyjuice_lvd.errors import InputError, JuliaError

EXTENSION = "LVDJuiceProbabilisticCircuitsExt"

JUICE = "juice"
ENGINES = ("lvdjuice", JUICE)
"""What can compute likelihoods."""


def load() -> None:
    """Load Juice.jl and what we do with it; raises InputError where it is not installed, or does not load."""
    try:
        julia.load_extension(EXTENSION)
    except (InputError, JuliaError) as error:
        why = str(error).splitlines()[0]
        raise InputError(
            f"Juice.jl: Julia cannot load ProbabilisticCircuits.jl ({why}); `lvd-juice setup --with juice` installs it"
        ) from error


def refuse_training(method: str, known: tuple[str, ...]) -> NoReturn:
    """Raise InputError: what of all that Juice.jl's EM needs is missing, the method, the package, or our own part."""
    if method not in known:
        raise InputError(f"--engine: found juice with method {method}, wanted {' or '.join(known)}")
    load()
    raise InputError(
        "--engine: found juice, whose EM runs on CUDA GPUs alone, where nobody has tried it with lvd-juice yet; wanted "
        "lvdjuice (Circuit.log_likelihood has engine='juice' on a CPU, and docs/juice.md hands circuits over)"
    )


def taken_over(circuit: julia.Handle) -> julia.Handle:
    """Make a circuit of ours of one of Juice.jl's."""
    if not isinstance(circuit, julia.Handle):
        raise InputError(f"circuit: found {type(circuit).__name__}, wanted a julia.Handle of a circuit of Juice.jl")
    load()
    ours: julia.Handle = julia.call("Circuit", circuit)
    return ours


def handed_over(circuit: julia.Handle, head: int | None) -> julia.Handle:
    """Make a circuit of Juice.jl's of one of ours: of one head, or of all with their prior weights."""
    load()
    theirs: julia.Handle = julia.call("juice_circuit", circuit, head)
    return theirs


def log_likelihood(engine: Engine, rows: Rows, hidden: Mask | None, head: int) -> npt.NDArray[np.float64]:
    """Compute likelihoods by Juice.jl: (N,) of one head, (N, num_heads) where `head` is -1; in nats."""
    if isinstance(rows, Evidence):
        raise InputError("engine: found 'juice' with Evidence, wanted a table: Juice.jl knows no soft evidence")
    heads = range(engine.num_heads) if head < 0 else [head]
    theirs = [handed_over(engine.circuit, own) for own in heads]
    out = np.empty((len(rows), len(heads)))
    for piece in engine.pieces(len(rows)):
        mine = None if hidden is None else hidden[piece]
        part = for_engine(rows[piece], masked=hidden is not None)
        julia.call("juice_log_likelihoods!", out[piece], part, mine, *theirs)
    return out if head < 0 else out[:, 0]
