"""Time two implementations alternately."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass
class Result:
    """One comparison: seconds (medians over rounds) and the ratio peer / ours of each round."""

    work: str
    peer: str
    ours_s: float
    peer_s: float
    ratio: float
    ratio_low: float
    ratio_high: float


def alternate(work: str, peer: str, ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> Result:
    """Time both alternately, after one warm-up of each."""
    ours()
    theirs()
    pairs = []
    for number in range(rounds):
        order = [ours, theirs] if number % 2 else [theirs, ours]
        seconds = {}
        for action in order:
            start = time.perf_counter()
            action()
            seconds[action] = time.perf_counter() - start
        pairs.append((seconds[ours], seconds[theirs]))
    mine, other = zip(*pairs, strict=True)
    return compared(work, peer, mine, other)


def compared(work: str, peer: str, ours: Sequence[float], theirs: Sequence[float]) -> Result:
    """Summarise the seconds of each round, in which both ran."""
    ratios = sorted(other / own for own, other in zip(ours, theirs, strict=True))
    middles = (statistics.median(ours), statistics.median(theirs))
    return Result(work, peer, *middles, statistics.median(ratios), ratios[0], ratios[-1])
