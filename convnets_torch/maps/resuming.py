"""Finished rows of a map in a folder, so that a run that was interrupted goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from convnets_torch.files import replacing
from convnets_torch.maps.passes import Kept, Store, Wanted, network_of
from convnets_torch.networks.grids import Grid
from convnets_torch.pipeline import Mappable
from convnets_torch.sources import Source

EVERY = 5.0  # seconds between files; a run that is killed loses no more than that and the strip it was in
SAMPLED = 64  # rows of a picture that tell it from another one


class FolderStore(Store):
    """Rows in the files of a folder, beside a note of the run that they belong to.

    Args:
        folder: made if it does not exist.
        run: what tells this run from others, as `fingerprint` gives it.

    Raises:
        ValueError: the folder holds rows of another run.
        OSError: it cannot be read or written.
    """

    def __init__(self, folder: str | os.PathLike[str], run: str) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        note = self._folder / "run.json"
        if not note.exists():
            with replacing(note) as temporary:
                temporary.write_text(json.dumps({"run": run}))
        elif _noted(note) != run:
            raise ValueError(
                f"{folder} holds rows of another run: another picture, network, target or option; name another folder"
            )
        self._waiting: list[Kept] = []
        self._first = 0
        self._saved = time.monotonic()

    def load(self, size: tuple[int, int]) -> list[Kept]:
        """The rows from the first on without a gap; a file that is damaged ends them."""
        files = {int(path.stem.removeprefix("rows-")): path for path in self._folder.glob("rows-*.npz")}
        found: list[Kept] = []
        while self._first in files:
            try:
                with files[self._first].open("rb") as file, np.load(file) as arrays:
                    piece = {name: arrays[name] for name in arrays.files}
            except (OSError, ValueError, EOFError, zipfile.BadZipFile):
                break
            found.append(piece)
            self._first += piece["best"].shape[-2]
        return found

    def add(self, first: int, kept: Kept) -> None:
        """Keep rows; they are written every few seconds, and by `flush`."""
        self._waiting.append(kept)
        if time.monotonic() - self._saved > EVERY:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting."""
        if self._waiting:
            piece = {name: np.concatenate([each[name] for each in self._waiting], axis=-2) for name in self._waiting[0]}
            with (
                replacing(self._folder / f"rows-{self._first:07}.npz") as temporary,
                temporary.open("wb") as file,
            ):
                np.savez(file, **piece)  # type: ignore[arg-type]
            self._first += piece["best"].shape[-2]
            self._waiting = []
        self._saved = time.monotonic()


def fingerprint(network: Mappable, grid: Grid, source: Source, wanted: Wanted) -> str:
    """What a map depends on, as a hash: weights, card, cells, the picture's size and some of its rows, targets."""
    digest = hashlib.sha256()
    state = network_of(network).state_dict()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    height, width = source.shape
    targets = [target.class_ids for target in wanted.targets]
    allowed = None if wanted.allowed is None else list(wanted.allowed)
    card = network.card.to_json() if network.card else None
    facts = [card, grid.stride, [height, width], targets, allowed, wanted.everything]
    if not isinstance(network, nn.Module):
        facts += [network.name, network.precision]
    digest.update(json.dumps(facts).encode())
    for row in np.unique(np.linspace(0, height - 1, SAMPLED).astype(int)).tolist():
        digest.update(np.ascontiguousarray(source.rows(row, row + 1)).data)
    return digest.hexdigest()


def _noted(note: Path) -> object:
    try:
        return json.loads(note.read_text())["run"]
    except (ValueError, KeyError, TypeError):
        return None
