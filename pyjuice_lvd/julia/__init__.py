"""The only door to Julia: one interface, two bridges (`juliacall` and `libjulia`); nothing else knows which one runs.

Calls cross at one C function (`LVDJuice.Boundary.invoke`), the same for both bridges: a bridge only starts Julia.
"""

from pyjuice_lvd.julia.diagnosis import Diagnosis, diagnose
from pyjuice_lvd.julia.session import Info, call, evaluate, info, load_extension, start
from pyjuice_lvd.julia.values import Handle, lendable

__all__ = ["Diagnosis", "Handle", "Info", "call", "diagnose", "evaluate", "info", "lendable", "load_extension", "start"]
