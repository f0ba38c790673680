"""The engine's speed on this machine, as ratios measured in one run. No timing counts without parity."""

from pyjuice_lvd.bench.cases import CASES, Case, ParityError
from pyjuice_lvd.bench.report import as_text
from pyjuice_lvd.bench.run import run_bench

__all__ = ["CASES", "Case", "ParityError", "as_text", "run_bench"]
