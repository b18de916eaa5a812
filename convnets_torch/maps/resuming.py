"""Finished rows of a map in a folder, so that a run that was interrupted goes on where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from convnets_torch import strict_json
from convnets_torch.files import alone_in, check_own_folder, open_own, opened_path, replacing
from convnets_torch.maps.passes import Kept, Store, Wanted, network_of
from convnets_torch.networks.grids import Grid
from convnets_torch.npz import read_npz
from convnets_torch.pipeline import Mappable
from convnets_torch.sources import Source

EVERY = 5.0  # seconds between files; a run that is killed loses no more than that and the strip it was in
SAMPLED = 64  # rows of a picture that tell it from another one
MOST_NOTE = 1 << 16  # bytes of the note, which holds a hash
ROUNDING = 1e-4  # by which a probability may be above 1


class FolderStore(Store):
    """Rows in the files of a folder, beside a note of the run that they belong to; to be closed at the end.

    Args:
        folder: made if it does not exist.
        run: what tells this run from others, as `fingerprint` gives it.
        wanted: what is kept of the cells.
        classes: of the network.

    Raises:
        ValueError: the folder holds rows of another run.
        OSError: it cannot be read or written, another process works in it, or something in it is a link.
    """

    def __init__(self, folder: str | os.PathLike[str], run: str, wanted: Wanted, classes: int) -> None:
        self._folder, self._wanted, self._classes = Path(folder), wanted, classes
        self._folder.mkdir(parents=True, exist_ok=True)
        self._waiting: list[Kept] = []
        self._first = 0
        self._saved = time.monotonic()
        with contextlib.ExitStack() as stack:
            stack.enter_context(alone_in(self._folder))
            check_own_folder(self._folder)
            note = self._folder / "run.json"
            if not note.exists():
                with replacing(note) as temporary:
                    temporary.write_text(json.dumps({"run": run}))
            elif _noted(note) != run:
                raise ValueError(
                    f"{folder} holds rows of another run: another picture, network, target or option; name another"
                    " folder"
                )
            self._lock = stack.pop_all()

    def load(self, size: tuple[int, int]) -> list[Kept]:
        """The rows from the first on without a gap; a file that is damaged ends them."""
        rows, columns = size
        found: list[Kept] = []
        while self._first < rows and (path := self._file(self._first)).exists():
            piece = self._read(path, rows - self._first, columns)
            if piece is None:
                break
            found.append(piece)
            self._first += piece["best"].shape[-2]
        return found

    def _read(self, path: Path, most: int, columns: int) -> Kept | None:
        """The rows of one file, `most` or fewer; None where they are not what a pass keeps."""
        blank = self._wanted.keep(torch.zeros(self._classes, 1, columns))
        room = most * sum(values.nbytes for values in blank.values()) + 1024 * len(blank)  # with their headers
        with open_own(path) as file:
            try:
                piece = read_npz(opened_path(file), max_bytes=room)
            except (OSError, ValueError):
                return None
        if piece.keys() != blank.keys() or piece["best"].ndim != 3:
            return None
        count = piece["best"].shape[-2]
        if not 0 < count <= most:
            return None
        for name, values in piece.items():
            shape = (*blank[name].shape[:-2], count, columns)
            if values.shape != shape or values.dtype != blank[name].dtype or not self._possible(name, values):
                return None
        return piece

    def _possible(self, name: str, values: NDArray[Any]) -> bool:
        """Whether all values are probabilities, or ids of classes that may be there."""
        if name == "winner_ids":
            return bool(np.isin(values, self._wanted.allowed or ()).all())
        if name == "best_ids":
            return bool(((values >= 0) & (values < self._classes)).all())
        return bool(((values >= 0) & (values <= 1 + ROUNDING)).all())

    def add(self, first: int, kept: Kept) -> None:
        """Keep rows; they are written every few seconds, and by `flush`."""
        self._waiting.append(kept)
        if time.monotonic() - self._saved > EVERY:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting."""
        if self._waiting:
            piece = {name: np.concatenate([each[name] for each in self._waiting], axis=-2) for name in self._waiting[0]}
            with replacing(self._file(self._first)) as temporary, temporary.open("wb") as file:
                np.savez(file, **piece)  # type: ignore[arg-type]
            self._first += piece["best"].shape[-2]
            self._waiting = []
        self._saved = time.monotonic()

    def close(self) -> None:
        """Write what is waiting, and let others into the folder."""
        with self._lock:
            self.flush()

    def _file(self, first: int) -> Path:
        return self._folder / f"rows-{first:07}.npz"


def fingerprint(network: Mappable, grid: Grid, source: Source, wanted: Wanted, levels: Mapping[str, str]) -> str:
    """What a map depends on, as a hash: weights, card, cells, the picture's size and some of its rows, targets.

    `levels` is how its values became 8 bits, as `said_levels` gives it, which some of its rows may not show.
    """
    digest = hashlib.sha256()
    state = network_of(network).state_dict()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    height, width = source.shape
    targets = [target.class_ids for target in wanted.targets]
    allowed = None if wanted.allowed is None else list(wanted.allowed)
    card = network.card.to_json() if network.card else None
    facts: list[Any] = [card, grid.stride, [height, width], targets, allowed, wanted.everything]
    if levels:
        facts += [dict(levels)]
    if not isinstance(network, nn.Module):
        facts += [network.name, network.precision]
    digest.update(json.dumps(facts).encode())
    for row in np.unique(np.linspace(0, height - 1, SAMPLED).astype(int)).tolist():
        digest.update(np.ascontiguousarray(source.rows(row, row + 1)).data)
    return digest.hexdigest()


def _noted(note: Path) -> object:
    with open_own(note) as file:
        try:
            return strict_json.loads(file.read(MOST_NOTE))["run"]
        except (ValueError, KeyError, TypeError):
            return None
