"""How long the longest single call into Julia takes, operation by operation: between calls, Ctrl-C is heard.

    .venv/bin/python benchmarks/longest_calls.py [--latents 100] [--vars 1000] [--json FILE]

The circuit is an HCLT with so many latents and variables of 256 categories: 1000 and 100 are 10 million edges and 26
million parameters of inputs. Every call at the door is timed, by the clock and by what its thread computed, which other
work on the machine does not lengthen; what Python does between the calls is not in the figures. The first call of an
operation compiles it: each is run once before on a small circuit.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from pyjuice_lvd import Circuit, julia
from pyjuice_lvd.circuit import Evidence
from pyjuice_lvd.julia import session

CATS = 256
ROWS = 256


class Door:
    """Times what passes."""

    def __init__(self) -> None:
        julia.start()
        self.entry = session._session.entry
        session._session.entry = self.timed
        self.seconds: list[tuple[float, float]] = []

    def timed(self, *arguments: Any) -> int:
        """Make one call."""
        began, cpu = time.perf_counter(), time.thread_time()
        count = self.entry(*arguments)
        self.seconds.append((time.perf_counter() - began, time.thread_time() - cpu))
        return count


def operations(num_vars: int, latents: int, folder: Path) -> dict[str, Callable[[], object]]:
    """Give each operation a name; they are run in this order, and later ones use what earlier ones made."""
    rng = np.random.default_rng(0)
    parent = np.array([-1, *((i - 1) // 2 for i in range(1, num_vars))])
    X = rng.integers(0, CATS, (ROWS, num_vars), dtype=np.uint8)
    mask = rng.random(X.shape) < 0.5
    made: dict[str, Any] = {}

    def keep(name: str, make: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> None:
            made[name] = make()

        return run

    wide = {"num_vars": 784 * num_vars // 1000 or 4, "depth": 6, "replicas": 20, "num_sums": max(latents // 5, 2)}
    return {
        "from_tree": keep("pc", lambda: Circuit.from_tree(parent, num_latents=latents, num_cats=CATS, heads=2)),
        "rat_spn": lambda: Circuit.rat_spn(**wide, num_inputs=max(latents // 5, 2), num_cats=CATS),
        "fully_factorized": lambda: Circuit.fully_factorized(num_vars=num_vars, num_cats=CATS, heads=latents),
        "hclt of rows": lambda: Circuit.hclt(X, num_latents=latents, num_cats=CATS),
        "hclt, start=clusters": lambda: Circuit.hclt(X[:, :20], num_latents=4, num_cats=CATS, start="clusters"),
        "mixture of 2": lambda: Circuit.mixture([made["pc"], made["pc"]]),
        "side_by_side": lambda: Circuit.side_by_side([made["pc"], made["pc"]]),
        "with_heads": lambda: made["pc"].with_heads([1]),
        "save .jpc": lambda: made["pc"].save(folder / "pc.jpc"),
        "load .jpc": lambda: Circuit.load(folder / "pc.jpc"),
        "save .safetensors": lambda: made["pc"].save(folder / "pc.safetensors"),
        "load .safetensors": lambda: Circuit.load(folder / "pc.safetensors"),
        "log_likelihood": lambda: made["pc"].log_likelihood(X),
        "flows": lambda: made["pc"].flows(X),
        "fit_em, 1 epoch": lambda: made["pc"].fit_em(X, epochs=1),
        "accumulate, apply": lambda: made["pc"].apply(made["pc"].accumulate(X)),
        "prune, min_flow": keep("pruned", lambda: made["pc"].prune(X, min_flow=1e-5)),
        "prune, min_flow=0": lambda: made["pc"].prune(X, min_flow=0),
        "prune, keep": keep("half", lambda: made["pc"].prune(X, keep=0.5)),
        "grow": lambda: made["half"].grow(X, heads=0, select=[0], threshold=0),
        "log_likelihood, pruned": lambda: made["half"].log_likelihood(X),
        "sample": lambda: made["pc"].sample(100),
        "sample, given": lambda: made["pc"].sample(2, X=X, mask=mask),
        "posterior_marginals": lambda: made["pc"].posterior_marginals(X[:64], mask[:64]),
        "mpe": lambda: made["pc"].mpe(X, mask),
        "Evidence": lambda: Evidence(rng.normal(size=(ROWS // 4, num_vars, CATS)).astype(np.float32)),
    }


def main() -> None:
    """Print a table, the slowest call of each operation; write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vars", type=int, default=1000)
    parser.add_argument("--latents", type=int, default=100)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    door, found = Door(), {}
    with tempfile.TemporaryDirectory() as folder:
        for run in operations(8, 3, Path(folder)).values():
            run()
        for name, run in operations(options.vars, options.latents, Path(folder)).items():
            door.seconds.clear()
            began = time.perf_counter()
            run()
            total = time.perf_counter() - began
            wall, cpu = (max(column) for column in zip(*door.seconds, strict=True))
            found[name] = {"longest": wall, "longest_cpu": cpu, "calls": len(door.seconds), "seconds": total}
            print(
                f"{name:24} longest {wall:6.2f} s ({cpu:.2f} s computed), {len(door.seconds):4} calls, {total:7.2f} s",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
