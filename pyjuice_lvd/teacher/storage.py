"""A teacher's tensors and facts in one safetensors file: the file of a teacher, and of a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from pyjuice_lvd.errors import InputError
from pyjuice_lvd.files.formats import read_arrays, write_arrays


def write_tensors(
    path: str | PathLike[str], kind: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> None:
    """Write tensors and facts (values that JSON knows) as a file of a `kind`, such as "teacher"."""
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    write_arrays(path, arrays, {"kind": kind, "facts": json.dumps(facts)})


@contextmanager
def read_tensors(path: str | PathLike[str], kind: str) -> Iterator[tuple[dict[str, Tensor], dict[str, Any]]]:
    """Read what `write_tensors` wrote, for use in a `with` block: CPU tensors and facts.

    Raises InputError when the file is missing, damaged or of another kind, and when the block finds that its contents
    are not what they should be (KeyError, TypeError, ValueError, or RuntimeError as PyTorch raises it).
    """
    arrays, metadata = read_arrays(path)
    if metadata.get("kind") != kind:
        raise InputError(f"{path}: found a file of kind {metadata.get('kind', 'unknown')!r}, wanted {kind!r}")
    try:
        yield {name: torch.from_numpy(array) for name, array in arrays.items()}, json.loads(metadata["facts"])
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: damaged, or written by another version ({reason}), wanted a {kind}") from error
