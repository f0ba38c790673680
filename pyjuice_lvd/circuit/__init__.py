"""Probabilistic circuits, which live in Julia: structure, EM, queries and files; nothing here knows of images."""

from pyjuice_lvd.circuit.builder import CircuitBuilder
from pyjuice_lvd.circuit.circuit import Circuit, Evidence, Flows, History, Statistics

__all__ = ["Circuit", "CircuitBuilder", "Evidence", "Flows", "History", "Statistics"]
