"""Choosing the sizes of a table's HCLT, and its pseudocount, by the validation split."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from pyjuice_lvd.files.formats import read_json, write_json
from pyjuice_lvd.files.names import SEARCH
from pyjuice_lvd.learn.pieces import Pieces
from pyjuice_lvd.progress import Progress
from pyjuice_lvd.settings import HCLTSettings

_SIZES = ((1, 16), (4, 16), (1, 64))
"""Trees and latents that are tried, with the pseudocount that the settings have."""

_PSEUDOCOUNTS = (0.0003, 0.03, 0.3)
"""What is tried with the best of them."""

_SHORTER = 3
"""Candidates learn for so many times fewer epochs: the likelihood settles as the steps become small, in few as well."""

_CHOSEN = ("trees", "latents", "pseudocount")


def is_open(own: HCLTSettings) -> bool:
    """Say whether sizes and pseudocount are to be chosen: `search` is set, and none of them to another value."""
    return own.search and all(getattr(own, name) == getattr(HCLTSettings, name) for name in _CHOSEN)


def choose(
    own: HCLTSettings,
    fits: Callable[[HCLTSettings], bool],
    score: Callable[[HCLTSettings], float],
    pieces: Pieces,
    record: Callable[[dict[str, Any]], None],
    progress: Progress,
) -> HCLTSettings:
    """Find the settings with the best validation likelihood, first among sizes, then among pseudocounts.

    Parameters
    ----------
    own : HCLTSettings
        Of which the rest stays.
    fits : callable
        Says whether the data, and this machine, allow so many trees and latents.
    score : callable
        Learns a circuit by the settings that it gets; gives the mean validation log-likelihood, in nats.
    pieces : Pieces
        Keeps what was tried.
    record : callable
        Gets one record for each candidate.
    progress : Progress
        Where the work is shown.

    Returns
    -------
    HCLTSettings
        With all epochs.

    """
    path, kept = pieces.path(SEARCH), pieces.finished(SEARCH)
    found: list[float] = [] if kept is None else read_json(kept)
    epochs = math.ceil(own.epochs / _SHORTER)
    tried: list[tuple[float, HCLTSettings]] = []
    sizes = [replace(own, trees=trees, latents=latents) for trees, latents in _SIZES]
    sizes = [candidate for candidate in sizes if fits(candidate)]

    def candidates() -> Iterator[HCLTSettings]:
        yield from sizes
        best = max(tried, key=lambda pair: pair[0])[1]
        yield from (replace(best, pseudocount=pseudocount) for pseudocount in _PSEUDOCOUNTS)

    with progress.stage("choosing trees and latents", total=len(sizes) + len(_PSEUDOCOUNTS), unit="tried") as stage:
        for number, candidate in enumerate(candidates()):
            if number == len(found):
                found.append(score(replace(candidate, epochs=epochs, patience=epochs)))
                if path is not None:
                    write_json(path, found)
            tried.append((found[number], candidate))
            sizes_of = {name: getattr(candidate, name) for name in _CHOSEN}
            record({"stage": "search", "tried": number + 1, **sizes_of, "epochs": epochs, "valid": found[number]})
            stage.advance(1)
    return max(tried, key=lambda pair: pair[0])[1]
