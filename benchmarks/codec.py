"""Sizes of compressed test images: models, and codecs that need none, on the same images.

    python benchmarks/codec.py DATA NAME=RUN [NAME=RUN]... -o benchmarks/FILE.json [--images 500] [--fuzz 0]

DATA is what the runs were fitted on; test images at even distances are taken. Of each run: the bytes of the file, with
its headers, what log p(x) promises, and processor time of both ways, after an image that has all compiled. Beside them
PNG, WebP, JPEG 2000 and JPEG XL, without loss, each image alone, by Pillow and imagecodecs where they are there; their
headers count too. `--fuzz N` mutates the file of the first run so many times: each must end in one error or in the
images. One thread, unless `--threads` says otherwise.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import machine, start
from PIL import Image

from pyjuice_lvd.cli.models import Run
from pyjuice_lvd.data.load import load_data
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.formats import write_json
from pyjuice_lvd.models.base import DensityModel
from pyjuice_lvd.progress import SILENT

Images = npt.NDArray[np.uint8]
Encode = Callable[[Images], bytes]


def codecs_without_a_model() -> Iterator[tuple[str, Encode]]:
    """Give lossless codecs of one image (H, W) or (H, W, 3), by name."""
    yield "png", _pillow("PNG", optimize=True)
    yield "webp", _pillow("WEBP", lossless=True, quality=100, method=6)
    try:
        import imagecodecs
    except ImportError:
        return
    yield "jpeg2000", lambda image: imagecodecs.jpeg2k_encode(image, reversible=True, level=0)
    yield "jpegxl_e7", lambda image: imagecodecs.jpegxl_encode(image, lossless=True, effort=7)
    yield "jpegxl_e9", lambda image: imagecodecs.jpegxl_encode(image, lossless=True, effort=9)


def _pillow(kind: str, **options: Any) -> Encode:
    def encode(image: Images) -> bytes:
        file = io.BytesIO()
        Image.fromarray(image).save(file, kind, **options)
        return file.getvalue()

    return encode


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    """Give a result, and the seconds of processor time that it took."""
    started = time.process_time()
    result = function()
    return result, time.process_time() - started


def measured(model: DensityModel, images: Images) -> dict[str, Any]:
    """Code images, check that they come back, and say what it took."""
    model.decompress(model.compress(images[:1]))  # compiles
    packed, encoding = timed(lambda: model.compress(images))
    found, decoding = timed(lambda: model.decompress(packed))
    if not np.array_equal(found, images):
        raise AssertionError("the images did not come back")
    bits = -float(model.score_samples(images).sum()) / np.log(2)
    return {
        "bytes": len(packed),
        "bpd": 8 * len(packed) / images.size,
        "bpd_of_log_likelihood": bits / images.size,
        "over_log_likelihood": 8 * len(packed) / bits - 1,
        "params": model.num_params,
        **_speed(images, encoding, decoding),
    }


def _speed(images: Images, encoding: float, decoding: float) -> dict[str, float]:
    megabytes = images.nbytes / 1e6
    return {
        "encoded_images_per_second": len(images) / encoding,
        "decoded_images_per_second": len(images) / decoding,
        "encoded_mb_per_second": megabytes / encoding,
        "decoded_mb_per_second": megabytes / decoding,
    }


def fuzzed(model: DensityModel, images: Images, times: int, seed: int = 0) -> dict[str, int]:
    """Mutate a file so many times; returns how they ended. Raises what is none of the two."""
    packed, rng, ends = model.compress(images), np.random.default_rng(seed), Counter[str]()
    codec = model._codec()  # once, for all
    for _ in range(times):
        mutated = bytearray(packed)
        for _ in range(rng.integers(1, 4)):
            at = rng.integers(len(mutated))
            match rng.integers(3):
                case 0:
                    mutated[at] ^= 1 << rng.integers(8)
                case 1:
                    del mutated[at : at + rng.integers(1, 50)]
                case _:
                    mutated[at:at] = rng.bytes(rng.integers(1, 50))
        try:
            found = codec.decompress(bytes(mutated), "data", 0, None, None, SILENT)
        except InputError as error:
            if "\n" in str(error):
                raise
            ends["one error"] += 1
        else:
            if not np.array_equal(found, images):
                raise AssertionError("other images came back")
            ends["the images"] += 1
    return dict(ends)


def main() -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--fuzz", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    started, threads = time.monotonic(), start(options.threads)
    runs = {name: Run.open(Path(path)) for name, path in (run.split("=", 1) for run in options.runs)}
    test = load_data(options.data, **next(iter(runs.values())).settings.loading).test
    images = test[np.unique(np.linspace(0, len(test) - 1, options.images).astype(int))]
    found: dict[str, Any] = {"without_a_model": {}, "models": {}}
    pictures = images[..., 0] if images.shape[-1] == 1 else images
    for name, encode in codecs_without_a_model():
        sizes, seconds = timed(lambda encode=encode: [len(encode(np.ascontiguousarray(image))) for image in pictures])
        found["without_a_model"][name] = {
            "bytes": sum(sizes),
            "bpd": 8 * sum(sizes) / images.size,
            "encoded_images_per_second": len(images) / seconds,
        }
        print(f"{name}: {found['without_a_model'][name]}", file=sys.stderr, flush=True)
    for number, (name, run) in enumerate(runs.items()):
        model = run.load()
        found["models"][name] = {**measured(model, images), "protocol": run.protocol(model)}
        if options.fuzz and not number:
            found["models"][name]["fuzzed"] = fuzzed(model, images[:3], options.fuzz)
        print(f"{name}: {found['models'][name]}", file=sys.stderr, flush=True)
    about = {"data": Path(options.data).name, "images": len(images), "shape": images.shape[1:], "threads": threads}
    seconds = round(time.monotonic() - started, 1)
    write_json(options.output, {**about, **found, "machine": machine(), "seconds": seconds})


if __name__ == "__main__":
    main()
