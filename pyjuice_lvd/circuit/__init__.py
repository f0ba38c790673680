"""Probabilistic circuits, which live in Julia: structure, EM, queries and files; nothing here knows of images."""

from pyjuice_lvd.circuit.builder import CircuitBuilder
from pyjuice_lvd.circuit.circuit import Circuit, Divergence, Evidence, Flows, History, Moments, Statistics

__all__ = ["Circuit", "CircuitBuilder", "Divergence", "Evidence", "Flows", "History", "Moments", "Statistics"]
