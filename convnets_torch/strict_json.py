"""JSON from files of strangers: no depth, numbers or repeated names that later code would stumble over."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

DEPTH = 64  # of lists and objects within each other
DIGITS = 19  # of whole numbers, which 64 bits hold


def loads(text: str | bytes) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: it is no JSON, nested more deeply than 64, has a name twice in one object, or a whole number of
            more than 19 digits.

    >>> loads('{"sizes": [224, 256]}')
    {'sizes': [224, 256]}
    """
    try:
        found = json.loads(text, parse_int=_whole_number, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError(f"it is nested more deeply than {DEPTH}") from None
    level = [found]
    for _ in range(DEPTH + 1):
        level = [entry for entry in level if isinstance(entry, dict | list)]
        if not level:
            return found
        level = [inner for entry in level for inner in (entry.values() if isinstance(entry, dict) else entry)]
    raise ValueError(f"it is nested more deeply than {DEPTH}")


def _whole_number(digits: str) -> int:
    if len(digits.lstrip("-")) > DIGITS:
        raise ValueError(f"it has a number of {len(digits)} digits")
    return int(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"it says {twice!r:.80} twice")
    return found
