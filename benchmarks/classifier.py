"""CircuitClassifier beside one plain HCLT for each class: accuracy on test images, grey levels in 16 or 17 steps.

    python benchmarks/classifier.py MNIST -o benchmarks/classifier.json [--train 2000] [--test 1000]

MNIST is an .npz of uint8 `train`, `train_labels`, `test` and `test_labels`, of which the first rows are taken, levels
divided by 16; digits are scikit-learn's, 1,200 of them by the seed to learn from and 597 to test. Both ways set a tenth
of each class apart to stop early by, and have the same parameters of EM.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import machine
from scipy.special import logsumexp
from sklearn.datasets import load_digits

from pyjuice_lvd import Circuit, CircuitClassifier, julia
from pyjuice_lvd.data.numpy_files import Npz
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.formats import write_json

EM = {"epochs": 25, "batch_size": 256, "step_size": (0.3, 0.03), "pseudocount": 0.1, "patience": 5}
GONE = 0.5
"""Share of the values of test rows that go missing, for a second figure."""

Rows = tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]


def apart(train: Rows, latents: int, cats: int, seed: int) -> list[Circuit]:
    """Learn an HCLT of each class, on its own rows and tree."""
    circuits, rng = [], np.random.default_rng(seed)
    for label in np.unique(train[1]):
        own = rng.permutation(train[0][train[1] == label])
        held_out = len(own) // 10
        circuit = Circuit.hclt(own[held_out:], num_latents=latents, num_cats=cats, seed=seed)
        circuit.fit_em(own[held_out:], valid=own[:held_out], seed=seed, **EM)
        circuits.append(circuit)
    return circuits


def measure(train: Rows, test: Rows, cats: int, latents: tuple[int, ...], seed: int) -> dict[str, Any]:
    """Learn in all ways; accuracies on complete test rows, and on those of which half is missing."""
    hidden = np.random.default_rng(seed).random(test[0].shape) < GONE
    found: dict[str, Any] = {
        "train": len(train[0]),
        "test": len(test[0]),
        "dims": train[0].shape[1],
        "categories": cats,
    }
    prior = np.log(np.unique(train[1], return_counts=True)[1])
    for own in latents:
        started = time.monotonic()
        circuits = apart(train, own, cats, seed)
        seconds = time.monotonic() - started
        scores = [np.stack([c.log_likelihood(test[0], mask=m) for c in circuits], 1) + prior for m in (None, hidden)]
        found[f"apart, {own} latents"] = {
            "params": sum(circuit.num_params for circuit in circuits),
            **_figures(*scores, np.unique(train[1]), test[1]),
            "seconds": round(seconds, 1),
        }
        started = time.monotonic()
        model = CircuitClassifier(num_latents=own, num_cats=cats, random_state=seed, **EM).fit(*train)
        seconds = time.monotonic() - started
        scores = [model.joint_log_likelihood(np.ma.masked_array(test[0], m)) for m in (np.zeros_like(hidden), hidden)]
        found[f"CircuitClassifier, {own} latents"] = {
            "params": model.circuit_.num_params,
            **_figures(*scores, model.classes_, test[1]),
            "seconds": round(seconds, 1),
        }
        print(f"{own} latents: {list(found.items())[-2:]}", file=sys.stderr, flush=True)
    return found


def _figures(
    whole: npt.NDArray[np.float64], half: npt.NDArray[np.float64], classes: npt.NDArray[Any], labels: npt.NDArray[Any]
) -> dict[str, float]:
    each = whole - logsumexp(whole, axis=1, keepdims=True)
    return {
        "accuracy": float((classes[whole.argmax(1)] == labels).mean()),
        "log_loss": float(-each[np.arange(len(labels)), np.searchsorted(classes, labels)].mean()),
        "accuracy_half_missing": float((classes[half.argmax(1)] == labels).mean()),
    }


def main() -> int:
    """Run the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mnist", type=Path, metavar="MNIST", help="mnist.npz")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="default: LVD_THREADS, else all cores")
    options = parser.parse_args()
    threads, started = julia.start(threads=options.threads or None).threads, time.monotonic()
    X, y = load_digits(return_X_y=True)
    X, order = X.astype(np.uint8), np.random.default_rng(options.seed).permutation(len(X))
    try:
        with Npz(options.mnist) as archive:
            mnist = archive.read(["train", "train_labels", "test", "test_labels"])
    except InputError as error:
        print(f"classifier: error: {error}", file=sys.stderr)
        return error.exit_status
    counts = {"train": options.train, "test": options.test}
    train, test = ((mnist[part][:n].reshape(n, -1) // 16, mnist[f"{part}_labels"][:n]) for part, n in counts.items())
    train_digits, test_digits = ((X[part], y[part]) for part in (order[:1200], order[1200:]))
    sets = {
        "digits": measure(train_digits, test_digits, 17, (4,), options.seed),
        "mnist": measure(train, test, 16, (4,), options.seed),
    }
    write_json(
        options.output,
        {
            "benchmark": "accuracy of CircuitClassifier, and of one HCLT for each class",
            "em": EM,
            "seed": options.seed,
            "threads": threads,
            "seconds": round(time.monotonic() - started, 1),
            "machine": machine(),
            "sets": sets,
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
