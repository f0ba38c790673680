"""Sizes of compressed test images: models, and codecs that need none, on the same images.

    python benchmarks/codec.py DATA NAME=RUN [NAME=RUN]... -o benchmarks/FILE.json [--images 500] [--fuzz 0]

DATA is what the runs were fitted on; test images at even distances are taken, or all (`--images 0`). Of each run: the
bytes of the file, with its headers, what log p(x) promises, and processor time of both ways, after an image that has
all compiled; and the bytes of images that no model expects, each a file of its own. Beside them PNG, WebP, JPEG 2000
and JPEG XL, without loss, each image alone, by Pillow and imagecodecs where they are there; their headers count too.
All must come back as they were. `--fuzz N` mutates the file of the first run so many times, every other time a stream
whose sum is made right again: each must end in one error or in the images. One thread, unless `--threads` says so.
"""

from __future__ import annotations

import argparse
import io
import struct
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
from pyjuice_lvd.codec.container import Block, packed_block, read_blocks, read_header
from pyjuice_lvd.data.load import load_data
from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.formats import write_json
from pyjuice_lvd.models.base import DensityModel
from pyjuice_lvd.progress import SILENT

Images = npt.NDArray[np.uint8]
Encode = Callable[[Images], bytes]
Decode = Callable[[bytes], Images]


def codecs_without_a_model() -> Iterator[tuple[str, Encode, Decode]]:
    """Give lossless codecs of one image (H, W) or (H, W, 3), by name."""
    yield "png", _pillow("PNG", optimize=True), _opened
    yield "webp", _pillow("WEBP", lossless=True, quality=100, method=6), _opened
    try:
        import imagecodecs
    except ImportError:
        return
    yield (
        "jpeg2000",
        lambda image: imagecodecs.jpeg2k_encode(image, reversible=True, level=0),
        imagecodecs.jpeg2k_decode,
    )
    for effort in (7, 9):
        yield (
            f"jpegxl_e{effort}",
            lambda image, effort=effort: imagecodecs.jpegxl_encode(image, lossless=True, effort=effort),
            imagecodecs.jpegxl_decode,
        )


def _pillow(kind: str, **options: Any) -> Encode:
    def encode(image: Images) -> bytes:
        file = io.BytesIO()
        Image.fromarray(image).save(file, kind, **options)
        return file.getvalue()

    return encode


def _opened(data: bytes) -> Images:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def measured_without(encode: Encode, decode: Decode, pictures: Images) -> dict[str, float]:
    """Code pictures, each alone, check that they come back, and say what it took."""
    packed, encoding = timed(lambda: [encode(np.ascontiguousarray(image)) for image in pictures])
    found, decoding = timed(lambda: [decode(data) for data in packed])
    for image, back in zip(pictures, found, strict=True):  # WebP knows no grey
        if not np.array_equal(back if back.shape == image.shape else back[..., 0], image):
            raise AssertionError("a picture did not come back")
    size = sum(map(len, packed))
    return {"bytes": size, "bpd": 8 * size / pictures.size, **_speed(pictures, encoding, decoding)}


def unexpected(shape: tuple[int, ...]) -> dict[str, Images]:
    """Give images (H, W, C) that no model expects, by name: noise, constant ones, and a checkerboard."""
    board = np.indices(shape[:2]).sum(axis=0) % 2 * 255
    noise = np.random.default_rng(0).integers(0, 256, shape)
    constant = {f"all {value}": np.full(shape, value) for value in (0, 7, 255)}
    found = {"noise": noise, "checkerboard": np.broadcast_to(board[..., None], shape), **constant}
    return {name: image.astype(np.uint8) for name, image in found.items()}


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
    bits = -float(model.score_samples(images).sum() / np.log(2))
    header, start = read_header(packed, "data")
    streams = sum(len(block.stream) for block in read_blocks(packed, header, start) if isinstance(block, Block))
    return {
        "bytes": len(packed),
        "bytes_of_headers": len(packed) - streams,
        "bpd": 8 * len(packed) / images.size,
        "bpd_of_log_likelihood": bits / images.size,
        "over_log_likelihood": 8 * len(packed) / bits - 1,
        "streams_over_log_likelihood": 8 * streams / bits - 1,
        "params": model.num_params,
        **_speed(images, encoding, decoding),
        "unexpected": {name: unexpectedly(model, image) for name, image in unexpected(model.image_shape).items()},
    }


def unexpectedly(model: DensityModel, image: Images) -> dict[str, float | None]:
    """Code one image that the model does not expect, and say what log p(x) would have been."""
    packed = model.compress(image[None])
    if not np.array_equal(model.decompress(packed)[0], image):
        raise AssertionError("an image did not come back")
    bits = -float(model.score_samples(image[None])[0] / np.log(2))
    return {"bytes": len(packed), "bytes_of_log_likelihood": bits / 8 if np.isfinite(bits) else None}


def _speed(images: Images, encoding: float, decoding: float) -> dict[str, float]:
    megabytes = images.nbytes / 1e6
    return {
        "encoded_images_per_second": len(images) / encoding,
        "decoded_images_per_second": len(images) / decoding,
        "encoded_mb_per_second": megabytes / encoding,
        "decoded_mb_per_second": megabytes / decoding,
    }


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip a bit, or leave out or put in up to 49 bytes, at one to three places."""
    found = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at = rng.integers(len(found)) if found else 0
        match rng.integers(3):
            case 0 if found:
                found[at] ^= 1 << rng.integers(8)
            case 1:
                del found[at : at + rng.integers(1, 50)]
            case _:
                found[at:at] = rng.bytes(rng.integers(1, 50))
    return bytes(found)


def mutated_stream(data: bytes, rng: np.random.Generator) -> bytes:
    """Mutate the stream of a file's last block, and make its sum right again, so that decoding begins."""
    start = data.rindex(b"BLCK")
    number, count, size, _, checksum = struct.unpack_from("<5I", data, start + 4)
    return data[:start] + packed_block(number, count, mutated(data[len(data) - size :], rng), checksum)


def fuzzed(model: DensityModel, images: Images, times: int, seed: int = 0) -> dict[str, int]:
    """Mutate a file so many times, every other time its stream alone; returns how they ended, if in one of two ways."""
    packed, rng, ends = model.compress(images), np.random.default_rng(seed), Counter[str]()
    codec = model._codec()  # once, for all
    for turn in range(times):
        damaged = (mutated_stream if turn % 2 else mutated)(packed, rng)
        try:
            found = codec.decompress(damaged, "data", 0, None, None, SILENT)
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
    parser.add_argument("--images", type=int, default=500, help="0: all test images")
    parser.add_argument("--fuzz", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    started, threads = time.monotonic(), start(options.threads)
    runs = {name: Run.open(Path(path)) for name, path in (run.split("=", 1) for run in options.runs)}
    test = load_data(options.data, **next(iter(runs.values())).settings.loading).test
    images = test[np.unique(np.linspace(0, len(test) - 1, options.images or len(test)).astype(int))]
    found: dict[str, Any] = {"without_a_model": {}, "models": {}}
    pictures = images[..., 0] if images.shape[-1] == 1 else images
    for name, encode, decode in codecs_without_a_model():
        found["without_a_model"][name] = measured_without(encode, decode, pictures)
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
