"""What known pixels say of hidden ones: models, and what needs no model, on the same images.

    python benchmarks/inpainting.py DATA NAME=RUN [NAME=RUN]... -o benchmarks/FILE.json [--images 500] [--threads 2]

DATA is what the runs were fitted on; test images at even distances are taken. For each mask, of each run: the mean of
log p(hidden | known) - log p(hidden), in nats, and the root mean square error of the posterior mean, in levels. Beside
them the errors of the mean pixel of the training images, of the mean of an image's known pixels, of the nearest known
pixel, and of biharmonic in-painting, where scikit-image is there.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import machine, start

from pyjuice_lvd.cli.models import Run
from pyjuice_lvd.data.load import load_data
from pyjuice_lvd.data.masks import read_mask
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.evaluate.merit import std_error
from pyjuice_lvd.files.formats import write_json
from pyjuice_lvd.progress import SILENT

MASKS = ("right", "left", "bottom", "top", "center")


def without_a_model(images: npt.NDArray[np.uint8], hidden: npt.NDArray[np.bool_], train: npt.NDArray[np.uint8]) -> Any:
    """Give guesses of the hidden pixels by name, float64 (N, H, W, C)."""
    from scipy.ndimage import distance_transform_edt

    rows, columns = distance_transform_edt(hidden, return_distances=False, return_indices=True)
    known = images[:, ~hidden].mean(axis=1)[:, None, None]
    yield "mean_of_the_data", np.broadcast_to(train.mean(axis=0), images.shape)
    yield "mean_of_what_is_known", np.broadcast_to(known, images.shape)
    yield "nearest_known_pixel", images[:, rows, columns].astype(np.float64)
    try:
        from skimage.restoration import inpaint_biharmonic
    except ImportError:
        return
    guesses = [inpaint_biharmonic(image / 255, hidden, channel_axis=-1) for image in images]
    yield "biharmonic", np.clip(np.stack(guesses), 0, 1) * 255


def main() -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    started, threads = time.monotonic(), start(options.threads)
    opened = {name: Run.open(Path(run)) for name, run in (pair.split("=", 1) for pair in options.runs)}
    first = next(iter(opened.values()))
    test, train = first.test_data(options.data, SILENT).data, load_data(options.data, **first.settings.loading).train
    images = test[np.linspace(0, len(test) - 1, min(options.images, len(test))).round().astype(int)]
    models = {name: run.load() for name, run in opened.items()}
    whole = {name: model.score_samples(images) for name, model in models.items()}
    found: dict[str, Any] = {}
    for mask in MASKS:
        hidden = read_mask(mask, *images.shape[1:3])
        truth = images[:, hidden].astype(np.float64)

        def error(guess: Any, hidden: Any = hidden, truth: Any = truth) -> float:
            return float(np.sqrt(((guess[:, hidden] - truth) ** 2).mean()))

        own: dict[str, Any] = {
            "rmse": {name: error(g) for name, g in without_a_model(images, hidden, train)},
            "nats": {},
        }
        for name, model in models.items():
            known, alone = (model.score_samples(images, mask=m) for m in (hidden, ~hidden))
            said = whole[name] - known - alone
            own["nats"][name] = {"mean": float(said.mean()), "std_error": std_error(said)}
            own["rmse"][name] = error(model.posterior_mean(images, hidden))
        found[mask] = own
        print(mask, own, file=sys.stderr, flush=True)
    write_json(
        options.output,
        {
            "benchmark": "inpainting",
            "data": options.data if not Path(options.data).exists() else Path(options.data).name,
            "images": len(images),
            "threads": threads,
            "machine": machine(),
            "seconds": round(time.monotonic() - started, 1),
            "masks": found,
        },
    )


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
