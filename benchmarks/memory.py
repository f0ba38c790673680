"""Memory of `lvd-juice fit` by the number of images, stage by stage, and of writing and reading a circuit.

    python benchmarks/memory.py IMAGES.npz -o benchmarks/memory.json [--images 50000 400000] [--set KEY=VALUE]...

IMAGES has colour images under `train`; mirrored and shifted copies make as many as are wanted, in an .npy file. The
schedule is a short one. What counts is memory that only this process can give back (`RssAnon` and `RssShmem` of
/proc/PID/status, Linux): pages of mapped files are not in it, as the system drops them where it needs the room.
`mapped` is what there was of these. The circuit is a hidden Chow-Liu tree of `--params` million parameters, of 4 bytes.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from common import machine

from pyjuice_lvd.files.formats import write_json
from pyjuice_lvd.versions import versions

SHORT = {
    "lvd-pg": (
        "teacher.epochs=1", "teacher.codes=64", "teacher.channels=16", "clusters.outer=8", "clusters.inner=2",
        "refining.rounds=1", "refining.latents=2", "refining.patches=2000", "circuit.latents=2", "circuit.epochs=1",
        "circuit.batch_size=4096", "growing.epochs=1", "prior.latents=4", "prior.epochs=1", "prior.soft_epochs=1",
        "prior.memory=0.25", "finetuning.epochs=1", "finetuning.candidates=2", "finetuning.batch_size=512",
    ),
    "offsets": (
        "teacher.epochs=1", "teacher.codes=64", "teacher.channels=16", "clusters.outer=8", "refining.rounds=1",
        "refining.latents=2", "refining.patches=2000", "circuit.latents=2", "offsets.steps=[32]", "offsets.joins=2",
        "offsets.states=8", "offsets.kinds=2", "offsets.epochs=1", "offsets.batch_size=512", "offsets.candidates=2",
    ),
}  # fmt: skip
"""Settings under which a fit goes through all of its stages, quickly."""

_CIRCUIT = """
    import sys, threading
    sys.path.insert(0, sys.argv[4])
    from memory import Watch
    from pathlib import Path
    import numpy as np
    from pyjuice_lvd import Circuit
    parent = np.arange(-1, int(sys.argv[1]) - 1)
    path = Path(sys.argv[3])
    if sys.argv[2] == "made":
        pc = Circuit.from_tree(parent, num_latents=128, num_cats=256)
        before = Circuit.from_tree(parent[:8], num_latents=128, num_cats=256)
    else:
        before = Circuit.load(sys.argv[5])
    before.save(path.with_name("small.safetensors"))
    with Watch("self") as watch:
        if sys.argv[2] == "made":
            pc.save(path)
        else:
            pc = Circuit.load(path)
    print(pc.num_params, watch.first, watch.most["own"])
"""


class Watch:
    """Looks at the memory of a process a hundred times a second, for use in a `with` block: the most there was."""

    def __init__(self, pid: int | str) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self.most = {"own": 0, "mapped": 0}
        self.stage = "start"
        self.stages: dict[str, dict[str, int]] = {}
        self.first = self._look()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._over.wait(0.01):
            self._look()

    def _look(self) -> int:
        try:
            found = dict(re.findall(r"(Rss\w+):\s+(\d+) kB", self._status.read_text()))
        except OSError:  # the process has ended
            return 0
        if not found:
            return 0
        now = {"own": int(found["RssAnon"]) + int(found["RssShmem"]), "mapped": int(found["RssFile"])}
        for most in (self.most, self.stages.setdefault(self.stage, dict(now))):
            for name, kilobytes in now.items():
                most[name] = max(most[name], 1024 * kilobytes)
        return 1024 * now["own"]


def copies(path: Path, images: np.ndarray, wanted: int) -> None:
    """Write so many images: every other copy is mirrored, and each pair shifted by one pixel more, round the edge."""
    out = np.lib.format.open_memmap(path, "w+", np.uint8, (wanted, *images.shape[1:]))
    for number, first in enumerate(range(0, wanted, len(images))):
        block = np.roll(images[: wanted - first], (number // 2, number // 2), (1, 2))
        out[first : first + len(block)] = block[:, :, ::-1] if number % 2 else block
    out.flush()


def fit(data: Path, run: Path, method: str, settings: list[str]) -> dict[str, Any]:
    """Measure `lvd-juice fit`, by stage: most bytes of its own and of mapped files."""
    own = [text for setting in (*SHORT[method], *settings) for text in ("--set", setting)]
    of = ["--method", "lvd-pg"] if method == "lvd-pg" else ["--method", "lvd", "--set", "offsets.trees=combs"]
    command = [sys.executable, "-m", "pyjuice_lvd.cli", "fit", str(data), "-o", str(run), "--threads", "1", *of, *own]
    started = time.monotonic()
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        with Watch(process.pid) as watch:
            for line in process.stderr:
                if found := re.match(r"(.*): started, ", line):
                    watch.stage = found[1]
                elif ": done in" in line:
                    watch.stage = f"after {line.split(':')[0]}"
                elif "error" in line:
                    print(line, file=sys.stderr)
        said = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"fit failed: {said}")
    return {"seconds": round(time.monotonic() - started, 1), **watch.most, "stages": watch.stages}


def circuit(folder: Path, millions: float) -> dict[str, Any]:
    """Measure what writing and reading a circuit takes beside what was there before, in units of its parameters."""
    variables, found = max(16, round(millions * 1e6 / (128 * 256 + 128 * 128))), {}
    for what in ("made", "read"):
        ran = subprocess.run(
            [sys.executable, "-c", re.sub(r"^    ", "", _CIRCUIT, flags=re.MULTILINE), str(variables), what,
             str(folder / "circuit.safetensors"), str(Path(__file__).parent), str(folder / "small.safetensors")],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        params, first, most = map(int, ran.stdout.split())
        found[{"made": "write", "read": "read"}[what]] = (most - first) / (4 * params)
    return {"params": params, "bytes_beside_by_parameters": {name: round(ratio, 2) for name, ratio in found.items()}}


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", metavar="IMAGES.npz", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--images", type=int, nargs="*", default=[50_000, 400_000])
    parser.add_argument("--methods", nargs="+", default=list(SHORT), choices=list(SHORT))
    parser.add_argument("--set", action="append", default=[], help="a setting beside the short schedule's")
    parser.add_argument("--params", type=float, default=20.0, help="of the circuit, in millions")
    options = parser.parse_args()
    with np.load(options.data, allow_pickle=False) as archive:
        images = archive["train"]
    found: dict[str, Any] = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        for method in options.methods:
            found[method] = {}
            for wanted in options.images:
                copies(folder / "images.npy", images, wanted)
                found[method][wanted] = fit(folder / "images.npy", folder / f"{method}-{wanted}", method, options.set)
                print(method, wanted, found[method][wanted], file=sys.stderr, flush=True)
        about = circuit(folder, options.params)
    result = {"benchmark": "memory", "machine": machine(), "versions": versions(), "fit": found, "circuit": about}
    write_json(options.output, result)


if __name__ == "__main__":
    main()
