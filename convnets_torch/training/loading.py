"""Batches of augmented pictures: the same ones whatever process, and however many, loads them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from convnets_torch.images import Reading, open_upright
from convnets_torch.preprocessing import Preprocessing
from convnets_torch.training.augmentation import Augmentation, view

Place = tuple[int, int]  # epoch, number of the picture


def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """The order of `count` items in an epoch; each item once.

    >>> sorted(epoch_order(5, seed=0, epoch=1)), epoch_order(5, 0, 1) == epoch_order(5, 0, 1)
    ([0, 1, 2, 3, 4], True)
    """
    order: list[int] = np.random.default_rng((seed, epoch)).permutation(count).tolist()
    return order


def batches(count: int, batch: int, seed: int, epoch: int) -> list[list[int]]:
    """An epoch's steps; the last one may be smaller.

    >>> list(map(len, batches(10, 4, seed=0, epoch=1)))
    [4, 4, 2]
    """
    order = epoch_order(count, seed, epoch)
    return [order[start : start + batch] for start in range(0, count, batch)]


class ViewedPictures(Dataset[Tensor]):
    """Augmented pictures by epoch and number.

    A picture's changes depend on the seed, the epoch and its file's content, not on where it stands or who loads it.

    Args:
        paths: of the files.
        labels: names of their classes, which `Augmentation.no_flip` may list.
        digests: sha256 of the files' contents.
        rule: the card's preprocessing.
        augmentation: what may be done.
        seed: of what is drawn.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[str],
        digests: Sequence[str],
        rule: Preprocessing,
        augmentation: Augmentation,
        seed: int,
    ) -> None:
        self.paths, self.labels, self.digests = paths, labels, digests
        self.rule, self.augmentation, self.seed = rule, augmentation, seed

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: Place) -> Tensor:
        """(height, width, 3) uint8, RGB."""
        epoch, number = place
        found = open_upright(self.paths[number], Reading(self.rule.exif))
        content = int(self.digests[number][:16], 16)
        pixels = view(
            found.image,
            self.rule,
            self.augmentation,
            (self.seed, epoch, content),
            label=self.labels[number],
            part=found.part,
        )
        return pixels.permute(1, 2, 0)


def loaded(views: ViewedPictures, steps: Sequence[Sequence[Place]], workers: int) -> Generator[Tensor, None, None]:
    """The batches of an epoch's steps, each (N, height, width, 3) uint8.

    Args:
        steps: places of the pictures of each step.
        workers: processes that load ahead; 0 loads in this one.

    Raises:
        OSError, ValueError: a picture cannot be read any more, in the same words whoever loads it.
    """
    loader: DataLoader[Tensor | Exception] = DataLoader(
        _Tried(views),
        batch_sampler=list(map(list, steps)),
        num_workers=workers,
        collate_fn=_stacked,
        worker_init_fn=partial(_stand_in, Path.cwd()),
        generator=torch.Generator(),  # of seeds that nothing uses, so that none is drawn from the global one
    )
    with _nothing_from_here() if workers else contextlib.nullcontext():
        found = iter(loader)
    for batch in found:
        if isinstance(batch, Exception):
            raise batch
        yield batch


@contextlib.contextmanager
def _nothing_from_here() -> Iterator[None]:
    """Keep interpreters that start meanwhile from importing what lies in the current folder, as `python -c` would."""
    if multiprocessing.get_start_method() == "fork":  # which starts none
        yield
    elif sys.version_info >= (3, 11):
        before = os.environ.get("PYTHONSAFEPATH")
        os.environ["PYTHONSAFEPATH"] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ["PYTHONSAFEPATH"]
            else:
                os.environ["PYTHONSAFEPATH"] = before
    else:  # they start in Python's own folder, and `_stand_in` takes them here when they have their modules
        before = Path.cwd()
        os.chdir(Path(os.__file__).parent)
        try:
            yield
        finally:
            os.chdir(before)


def _stand_in(folder: Path, worker: int) -> None:
    os.chdir(folder)


class _Tried(Dataset["Tensor | Exception"]):
    """Views, or why there is none: raised in a worker, an error would come with the worker's traceback as its text."""

    def __init__(self, views: ViewedPictures) -> None:
        self._views = views

    def __getitem__(self, place: Place) -> Tensor | Exception:
        try:
            return self._views[place]
        except (OSError, ValueError) as error:
            return error


def _stacked(items: Sequence[Tensor | Exception]) -> Tensor | Exception:
    errors = [item for item in items if isinstance(item, Exception)]
    return errors[0] if errors else torch.stack([item for item in items if isinstance(item, Tensor)])
