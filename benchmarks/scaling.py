"""How EM's steps scale to many processes: measured with one and two here, predicted for up to 256.

    python benchmarks/scaling.py DATA -o benchmarks/scaling.json --plot docs/pictures/scaling.png [--only NAME]...

DATA has colour images of 32x32 under `train`; images of 64x64 are four of them in one. A step that P processes share
takes, with B samples in the batch,

    T(P, B) = B / P sample + shared + transfer(P),    T(1, B) = B sample + step,
    transfer(P) = 2 (P - 1) latency + 2 (P - 1) / P bytes second_per_byte:

the E-step of a process' part, the M-step, which all do alike, and a ring's all-reduce of all counts, in Float64.
`shared` is more than `step`: where all counts are those of many, one process' savings on what its batch has not seen
are none. `sample` and `step` come from one process with two sizes of batch, `shared` from one that does its half of a
step and adds nothing up, `latency` and `second_per_byte` from transfers between two processes. Two processes then
share steps, and what these take stands beside the formula's figure. On a network a byte takes the network's time and,
as processors move bytes there as well, this machine's.

Outer clusters, patch circuits and shapes are shared out whole, without traffic; there the fullest process counts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
from common import machine

from pyjuice_lvd import Circuit
from pyjuice_lvd.circuit.reduce import Array, Reducer, TorchReducer, owners, using
from pyjuice_lvd.clustering import kmeans
from pyjuice_lvd.data.color import color_transform
from pyjuice_lvd.data.load import load_data
from pyjuice_lvd.data.patches import to_patches
from pyjuice_lvd.distributed import processes, start_together
from pyjuice_lvd.files.formats import write_json
from pyjuice_lvd.learn.offsets import Patches, starting_model
from pyjuice_lvd.models.joint import JointModel
from pyjuice_lvd.models.joint_em import fit_end_to_end
from pyjuice_lvd.models.patch import PatchModel
from pyjuice_lvd.settings import resolve
from pyjuice_lvd.teacher import Teacher
from pyjuice_lvd.versions import versions

WORKERS = tuple(2**k for k in range(9))
LARGER = (1, 4, 16)
"""Batches so many times the settings' own."""
NETWORKS = {"10 Gbit/s": (50e-6, 8 / 10e9), "100 Gbit/s": (10e-6, 8 / 100e9)}
"""Seconds of a message, and of a byte, that such networks promise. They were not measured."""
FASTER = (1, 16)
"""Processes so many times as fast, in E-step and M-step, as the thread that was measured."""
STEPS = 4
"""A step's time is the mean of so many, an epoch; the better of two epochs after one that compiles."""

UInt8 = npt.NDArray[np.uint8]
Learn = Callable[[UInt8, int, int, Callable[..., None]], object]
"""Learns from images with batches of a size, so many epochs, and tells the end of each."""


def hclt(images: UInt8) -> Learn:
    """Make one circuit over whole images; a chain of variables is as much work as any tree."""
    variables, latents = int(np.prod(images.shape[1:])), resolve(None, None, [], method="hclt", seed=0).hclt.latents
    pc = Circuit.from_tree(np.arange(-1, variables - 1), num_latents=latents, num_cats=256)
    return lambda x, batch, epochs, told: pc.fit_em(
        x.reshape(len(x), -1), epochs=epochs, batch_size=batch, on_epoch=told
    )


def offsets(images: UInt8) -> Learn:
    """Start the preset `cifar10`, whose shapes are those of K-means here."""
    settings = resolve("cifar10", None, [], method="lvd", seed=0)
    patches, shapes = _shapes(images, settings.clusters.outer)
    model = starting_model(patches, shapes, settings, images.shape[1:])
    return _end_to_end(model, settings.clusters.outer, settings.offsets.candidates)


def joint(images: UInt8) -> Learn:
    """Make a model of the sizes of the preset `imagenet64`, before its circuits grow, of chains."""
    settings = resolve("imagenet64", None, [], method="lvd-pg", seed=0)
    outer, inner = settings.clusters.outer, settings.clusters.inner
    _, positions, variables = to_patches(images[:1], settings.teacher.patch).shape
    chain, latents = np.arange(-1, variables - 1), settings.circuit.latents
    model = JointModel(
        image_shape=images.shape[1:],
        patch=settings.teacher.patch,
        color="ycocg",
        circuits=[
            Circuit.from_tree(chain, num_latents=latents, num_cats=256, heads=inner, seed=number)
            for number in range(outer)
        ],
        prior=Circuit.from_tree(
            np.arange(-1, positions - 1), num_latents=settings.prior.latents, num_cats=outer * inner
        ),
    )
    return _end_to_end(model, outer, settings.finetuning.candidates)


def teacher(images: UInt8) -> Learn:
    """Make the teacher of the preset `cifar10`."""

    def learn(x: UInt8, batch: int, epochs: int, told: Callable[..., None]) -> None:
        own = [f"teacher.batch_size={batch}", f"teacher.epochs={epochs}"]
        Teacher(resolve("cifar10", None, own, method="lvd", seed=0).teacher).fit(x, device="cpu", on_epoch=told)

    return learn


def _end_to_end(model: PatchModel, outer: int, candidates: int) -> Learn:
    def learn(x: UInt8, batch: int, epochs: int, told: Callable[..., None]) -> None:
        tried = np.random.default_rng(0).integers(0, outer, (*model.patches(x).shape[:2], candidates))
        fit_end_to_end(
            model, x, x[:1], epochs=epochs, step_size=(0.1, 0.1), batch_size=batch, candidates=tried, patience=epochs,
            on_epoch=told,
        )  # fmt: skip

    return learn


def _shapes(images: UInt8, outer: int) -> tuple[Patches, npt.NDArray[np.int32]]:
    """Cut images into patches, with offsets as `cifar10` has them, and what is left into clusters (N, P)."""
    settings = resolve("cifar10", None, [], method="lvd", seed=0)
    x = to_patches(color_transform("ycocg", 3).forward(images), settings.teacher.patch)
    patches = Patches.of(x, settings.offsets.of_channels(3)[0])
    left = patches.residuals.reshape(-1, x.shape[2]).astype(np.float32)
    return patches, kmeans(left, outer, 0).reshape(x.shape[:2])


# Images' side, how a step learns, the settings' batch, and the sizes of batches that are measured.
JOBS: dict[str, tuple[int, Callable[[UInt8], Learn], int, tuple[int, int]]] = {
    "HCLT, 32x32": (32, hclt, resolve(None, None, [], method="hclt", seed=0).hclt.batch_size, (64, 256)),
    "HCLT, 64x64": (64, hclt, resolve(None, None, [], method="hclt", seed=0).hclt.batch_size, (64, 256)),
    "preset cifar10 end to end, 32x32": (32, offsets, resolve("cifar10", None, []).offsets.batch_size, (16, 64)),
    "preset imagenet64 end to end, 64x64": (64, joint, resolve("imagenet64", None, []).finetuning.batch_size, (16, 64)),
    "the teacher, 32x32": (32, teacher, resolve("cifar10", None, []).teacher.batch_size, (64, 256)),
}


SHARED = {name: resolve(name, None, []).clusters.outer for name in ("cifar10", "imagenet64")}
"""Outer clusters of presets."""


class Half(Reducer):
    """The second of two processes, of which there is no first: it does its part of each step and gets nothing."""

    rank, size, bytes = 1, 2, 0

    def all_reduce(self, *arrays: Array) -> None:
        """Note the bytes of a step's sum, the largest there is."""
        self.bytes = max(self.bytes, *(array.nbytes for array in arrays))


class Recorded(TorchReducer):
    """Notes the seconds in which the end of an epoch is told to all."""

    telling = 0.0

    def broadcast(self, *arrays: Array) -> None:
        """Take process 0's arrays."""
        started = time.monotonic()
        super().broadcast(*arrays)
        self.telling += time.monotonic() - started


def work(name: str, images: UInt8, half: bool) -> dict[str, Any]:
    """Measure the steps of a job, as one process, one of two, or half of what two do: seconds by the batch's size."""
    side, make, _, sizes = JOBS[name]
    if side == 64:
        first, second, third, fourth = np.array_split(images, 4)
        images = np.concatenate([np.concatenate([first, second], 2), np.concatenate([third, fourth], 2)], 1)
    with processes(start=False) as joined:
        start_together()
        learn, seconds = make(images), {}
        reducer = Half() if half else Recorded() if joined.size > 1 else joined
        with using(reducer):
            for batch in sizes:
                ends: list[float] = []

                def told(*_: object, ends: list[float] = ends) -> None:
                    ends.append(time.monotonic() - getattr(reducer, "telling", 0.0))

                learn(images[np.arange(STEPS * batch) % len(images)], batch, 3, told)
                seconds[batch] = float(np.diff(ends).min()) / STEPS
    return {"seconds": seconds, "bytes": getattr(reducer, "bytes", 0), "rank": joined.rank}


def transfers() -> dict[str, Any]:
    """Measure, as one of two, transfers of 8 bytes and of 128 MiB: the medians of their seconds."""
    with processes(start=False) as reducer:
        found = {}
        for size in (1, 2**24):
            array, took = np.zeros(size), []
            for _ in range(9):
                reducer.gather_bytes(b"")  # both begin together
                started = time.monotonic()
                reducer.all_reduce(array)
                took.append(time.monotonic() - started)
            found[8 * size] = float(np.median(took))
    return {"seconds": found, "rank": reducer.rank}


def together(count: int, *args: str | Path) -> dict[str, Any]:
    """Run this program's work in so many processes of one thread each; gives what the first of them found."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LVD_THREADS": "1"}
    launched = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
    with TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        command = [sys.executable, *launched, __file__, *map(str, args), "--work", str(found)]
        subprocess.run(command, check=True, env=environment)
        result: dict[str, Any] = json.loads(found.read_text())
    return result


def measured(name: str, data: str) -> dict[str, Any]:
    """Measure the steps of a job: seconds of one process, of half a step, and of two processes; bytes of the sum."""
    one, half, two = (together(count, data, "--only", name, *own) for count, own in ((1, []), (1, ["--half"]), (2, [])))
    return {"one": one["seconds"], "half": half["seconds"], "two": two["seconds"], "bytes": half["bytes"]}


def modelled(name: str, found: dict[str, Any], exchange: dict[str, float]) -> dict[str, Any]:
    """Give the formula's figures of what was measured, and what it says of two processes."""
    one, half, two = ({int(batch): seconds for batch, seconds in found[key].items()} for key in ("one", "half", "two"))
    (small, fast), (large, slow) = sorted(one.items())
    sample = (slow - fast) / (large - small)
    job = {
        "batch": JOBS[name][2], "sample": sample, "step": max(0.0, fast - small * sample),
        "shared": max(0.0, half[small] - small / 2 * sample), "bytes": found["bytes"],
    }  # fmt: skip
    predicted = {batch: step_seconds(job, 2, batch, **exchange) for batch in one}
    return {**job, "predicted": predicted, "error": {batch: predicted[batch] / two[batch] - 1 for batch in one}}


def step_seconds(
    job: dict[str, Any], workers: int, batch: float, latency: float, second_per_byte: float, faster: float = 1
) -> float:
    """T(P, B) of the formula, of processes that compute so many times as fast as was measured."""
    transfer = 2 * (workers - 1) * latency + 2 * (workers - 1) / workers * job["bytes"] * second_per_byte
    return (batch / workers * job["sample"] + job["step" if workers == 1 else "shared"]) / faster + transfer


def scaled(job: dict[str, Any], exchange: dict[str, float]) -> list[dict[str, Any]]:
    """Predict efficiencies, T(1, B) / (P T(P, B)), up to where they are one half, and the batch that has 0.8 of 64."""
    found = []
    for network, (latency, byte) in NETWORKS.items():
        for faster in FASTER:
            times = {"latency": latency, "second_per_byte": byte + exchange["second_per_byte"], "faster": faster}

            def efficiency(workers: int, batch: float, times: dict[str, float] = times) -> float:
                alone = step_seconds(job, 1, batch, **times)
                return alone / (workers * step_seconds(job, workers, batch, **times))

            # efficiency(64, B) = 0.8, solved for B: all but the E-step of one's own part is the same for any batch.
            fixed, step = step_seconds(job, 64, 0, **times), job["step"] / faster
            enough = max(0.0, (0.8 * 64 * fixed - step) / (0.2 * job["sample"] / faster))
            curves = {str(k * job["batch"]): [efficiency(p, k * job["batch"]) for p in WORKERS] for k in LARGER}
            found.append(
                {
                    "network": network,
                    "faster": faster,
                    "efficiency": curves,
                    "workers_at_half": {
                        batch: max(p for p, value in zip(WORKERS, curve, strict=True) if value >= 0.5)
                        for batch, curve in curves.items()
                    },
                    "batch_for_0.8_of_64": int(np.ceil(enough)),
                }
            )
    return found


def shared_out(images: UInt8, outer: int) -> dict[str, Any]:
    """Share clusters out by their patches: efficiency is the mean process' patches over the fullest one's."""
    sizes = np.bincount(_shapes(images, outer)[1].reshape(-1))
    efficiency = []
    for workers in WORKERS:
        reducer = Reducer()
        reducer.size = workers
        with using(reducer):
            owner = owners(sizes.tolist())
        efficiency.append(float(sizes.sum() / workers / np.bincount(owner, sizes, workers).max()))
    return {"clusters": len(sizes), "largest_share": float(sizes.max() / sizes.sum()), "efficiency": efficiency}


def plot(path: Path, found: dict[str, Any]) -> None:
    """Draw the efficiencies of the jobs by network and batch, of processes as measured, and of clusters shared out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7), layout="constrained")
    *panels, last = figure.subplots(2, 3, sharex=True, sharey=True).flat
    for axes, (name, job) in zip(panels, found["jobs"].items(), strict=True):
        for case, style in zip((case for case in job["scaled"] if case["faster"] == 1), ("--", "-"), strict=True):
            for shade, (batch, curve) in enumerate(case["efficiency"].items()):
                axes.plot(WORKERS, curve, style, color=f"C{shade}", label=f"{case['network']}, batches of {batch}")
        axes.set_title(name)
    for preset, case in found["shared out"].items():
        last.plot(WORKERS, case["efficiency"], label=f"{preset}, {case['clusters']} clusters")
    last.set_title("clusters shared out, no traffic")
    for axes in (*panels, last):
        axes.set_xscale("log", base=2)
        axes.set_ylim(0, 1.05)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.supxlabel("processes")
    figure.supylabel("efficiency")
    figure.savefig(path, dpi=80)


def main() -> int:
    """Measure, predict and write; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="DATA")
    parser.add_argument("-o", "--output", type=Path, help="the JSON file to write; what it has is kept")
    parser.add_argument("--plot", type=Path, help="the picture to write")
    parser.add_argument("--only", action="append", choices=["transfers", *JOBS], help="default: all")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--half", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        (name,) = options.only
        result = transfers() if name == "transfers" else work(name, load_data(options.data).train[:256], options.half)
        if result["rank"] == 0:
            write_json(options.work, result)
        return 0
    if not options.output:
        parser.error("the following arguments are required: -o/--output")
    before = json.loads(options.output.read_text()) if options.output.exists() else {}
    took = together(2, options.data, "--only", "transfers")["seconds"]
    (_, short), (size, long) = sorted((int(size), seconds) for size, seconds in took.items())
    # Of two processes' ring: two messages, and each byte once there and once back.
    exchange = {"latency": short / 2, "second_per_byte": (long - short) / size}
    found: dict[str, Any] = {
        "benchmark": "scaling", "machine": machine(), "versions": versions(), "exchange": exchange,
        "workers": WORKERS, "measured": before.get("measured", {}), "jobs": {},
    }  # fmt: skip
    for name in options.only or JOBS:
        if name not in found["measured"]:
            found["measured"][name] = measured(name, options.data)
            write_json(options.output, found)
        job = modelled(name, found["measured"][name], exchange)
        found["jobs"][name] = {**job, "scaled": scaled(job, exchange)}
        print(name, json.dumps({**found["measured"][name], **job}), flush=True)
    start_together()
    images = load_data(options.data).train[:5000]
    found["shared out"] = {preset: shared_out(images, outer) for preset, outer in SHARED.items()}
    write_json(options.output, found)
    if options.plot:
        plot(options.plot, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
