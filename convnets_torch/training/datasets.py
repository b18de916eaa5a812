"""Data sets for fine-tuning: pictures with labels, divided and loaded in batches.

Where nothing says which pictures are for validation, the content of a file decides: a picture's rank in its class is
the sha256 of the seed and of the file's own sha256. So a class added, a folder moved or a file renamed changes no other
picture's side, folders and a table of the same files are split alike, and exact copies stay together. Where pictures
have several labels, those of each label are divided so, from the rarest label on.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from convnets_torch.files import sha256
from convnets_torch.images.decoding import MOST_BYTES, Reading, open_upright
from convnets_torch.images.finding import few
from convnets_torch.images.labelled import (
    LabelledPictures,
    check_classes,
    check_once,
    find_labelled,
    in_several,
    number_remarks,
)
from convnets_torch.images.preprocessing import Preprocessing
from convnets_torch.training.augmentation import Augmentation, view

Labelled = tuple[tuple[Path, int], ...]


@dataclass(frozen=True)
class Dataset:
    """Pictures and their classes, on two sides.

    Attributes:
        classes: names, sorted as text.
        train: each picture to learn from, and the place of its class in `classes`, or of its labels in `sets`; sorted
            by that, then by path.
        val: the same of those to judge by; classes with a single picture, or without a validation picture, have none.
        split: how `val` came to be, in words.
        remarks: sentences on what was left out or is doubtful.
        sets: where pictures may have several labels, the different sets of them, as places in `classes`; else empty.
    """

    classes: tuple[str, ...]
    train: Labelled
    val: Labelled
    split: str
    remarks: tuple[str, ...] = ()
    sets: tuple[tuple[int, ...], ...] = ()

    def names_of(self, label: int) -> tuple[str, ...]:
        """The classes of a picture, by the number that stands beside it in `train` or `val`."""
        return tuple(self.classes[place] for place in (self.sets[label] if self.sets else (label,)))

    def shown_as(self, label: int, no_flip: Collection[str]) -> str:
        """One of these names: one in `no_flip`, whose pictures are never mirrored, if any is; "" if there is none."""
        names = self.names_of(label)
        return next((name for name in names if name in no_flip), names[0] if names else "")


def find_dataset(
    data: str | os.PathLike[str],
    *,
    truth: str | os.PathLike[str] | None = None,
    columns: Sequence[str] | None = None,
    partial: bool = False,
    exclude: str | Iterable[str] = (),
    val_share: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """The pictures that a folder or a table gives, with their classes and sides.

    Args:
        data: one of
            a folder with a sub-folder of pictures for each class;
            a folder with the folders `train`, perhaps `val` (or `valid`, `validation`) and `test`, which have such
            sub-folders; pictures of `test` are left out;
            a table (`.csv`, `.tsv`, `.txt`) of the pictures beside and below it: a column of names (`path`, `file`,
            `image_id`, `id`, ...), one of labels (`label`, `class`, `breed`, ...) or one for each class, with a 1 in
            that of the picture's, and perhaps a column `split` of the words train, val and test. A picture may have
            several labels, `rust|scab` or a 1 in several columns, or in these none.
        truth: such a table for the pictures in the folder `data`.
        columns: the names of the table's columns of pictures and labels.
        partial: go on where pictures of the folder have no row, or pictures of the table are missing.
        exclude: patterns of files and folders that are left out, as in `find_pictures`.
        val_share: share of the different pictures of each class that become `val` where the data have no such side.
            Of each class with two pictures or more, at least one is on each side. Above 0 and below 1. Of several
            labels, the share of each is so large as its other labels allow.
        seed: of that choice.

    Raises:
        OSError: the data are missing or cannot be read; files of the table are missing.
        ValueError: one class alone, an empty one, or one that is in `val` alone; one picture in several classes, or
            with several sets of labels; pictures in deeper folders, so that it is not sure which ones are classes;
            pictures beside each other without labels; a table without the columns, with rows that say nothing sure or
            labels that look like measured values; `val_share` is out of range.

    Warns:
        PictureWarning: pictures beside the class folders, hidden ones, and files that are no pictures, were left out.

    >>> from PIL import Image
    >>> for number in range(10):
    ...     folder = Path("pets", "cats" if number % 2 else "dogs")
    ...     folder.mkdir(parents=True, exist_ok=True)
    ...     Image.new("L", (8, 8), number).save(folder / f"{number}.png")
    >>> found = find_dataset("pets")
    >>> found.classes, len(found.train), len(found.val), found.split
    (('cats', 'dogs'), 8, 2, '20 % of each class, seed 0')
    """
    if not 0 < val_share < 1:
        raise ValueError(f"a validation share of {val_share} leaves one side empty; give one above 0 and below 1")
    found = find_labelled(data, truth, columns=columns, partial=partial, exclude=exclude, several=True)
    kept = found.of("train", "val", None)
    check_classes(kept)
    remarks = [*kept.remarks, *number_remarks(kept)]
    if tested := len(found.paths) - len(kept.paths):
        remarks.append(f"{found.where}: left out {tested} pictures of test")
    if kept.several is not None:
        return _several(kept, val_share, seed, remarks)
    check_once(kept.by_class())
    train, val, split = kept.of("train", None).by_class(), kept.of("val").by_class(), kept.split
    _check_learnt(found.where, train, val)
    if not val:
        train, val = _split(train, val_share, seed)
        split = f"{100 * val_share:g} % of each class, seed {seed}"
    if not val:
        raise ValueError(
            f"{found.where}: every class has one picture alone, or copies of one, so none is left to judge by; add some"
        )
    remarks += _unjudged(found.where, train, val)
    classes = tuple(sorted(train))
    return Dataset(classes, _listed(classes, train), _listed(classes, val), split, tuple(remarks))


def _check_learnt(where: Path, train: Collection[str], val: Collection[str]) -> None:
    if alone := sorted(set(val) - set(train)):
        raise ValueError(
            f"{where}: {len(alone)} classes are in val and not in train ({few(alone)}), so they cannot be learnt;"
            " add pictures to train, or leave the classes out (--exclude, exclude in Python)"
        )


def _unjudged(where: Path, train: Collection[str], val: Collection[str]) -> list[str]:
    """A remark on classes that no picture of val has."""
    missing = sorted(set(train) - set(val))
    if not missing:
        return []
    return [
        f"{where}: {len(missing)} classes have no validation pictures ({few(missing)}); they are learnt all the same,"
        " and no figure says how well"
    ]


def _several(found: LabelledPictures, val_share: float, seed: int, remarks: Sequence[str]) -> Dataset:
    """Those of pictures with several labels each."""
    if words := in_several(found.by_class()):
        raise ValueError(f"{words}; give them the same labels, or leave them out (--exclude, exclude in Python)")
    every = dict(zip(found.paths, found.every, strict=True))
    val, split = set(found.of("val").paths), found.split
    if not val:
        val = _divided(every, val_share, seed)
        split = f"{100 * val_share:g} % of each label, seed {seed}"
    train = every.keys() - val
    learnt, judged = ({label for path in side for label in every[path]} for side in (train, val))
    _check_learnt(found.where, learnt, judged)
    if not judged:
        raise ValueError(f"{found.where}: no picture to judge by has a label; add some that have")
    classes = tuple(sorted(learnt))
    places = {name: place for place, name in enumerate(classes)}
    sets = {path: tuple(sorted(places[label] for label in labels)) for path, labels in every.items()}
    numbers = {each: number for number, each in enumerate(sorted(set(sets.values())))}

    def listed(side: Iterable[Path]) -> Labelled:
        return tuple((path, number) for number, path in sorted((numbers[sets[path]], path) for path in side))

    told = (*remarks, *_unjudged(found.where, learnt, judged))
    return Dataset(classes, listed(train), listed(val), split, told, tuple(numbers))


def _divided(every: Mapping[Path, tuple[str, ...]], val_share: float, seed: int) -> set[Path]:
    """Pictures for validation, by rank of content: of each label its share, the rarest first; then of those without.

    The last picture with a label stays to be learnt from.
    """
    contents: dict[str, list[Path]] = {}
    for path in every:
        contents.setdefault(_content(path), []).append(path)
    labels = {digest: every[paths[0]] or ("",) for digest, paths in contents.items()}  # copies have the same ones
    ranked = sorted(contents, key=lambda digest: _rank(digest, seed))
    left = Counter(label for each in labels.values() for label in each)
    chosen: set[str] = set()
    for label, count in sorted(left.items(), key=lambda item: (item[0] == "", item[1], item[0])):
        own = [digest for digest in ranked if label in labels[digest]]
        wanted = _val_count(val_share, count) - sum(digest in chosen for digest in own)
        for digest in own:
            if wanted > 0 and digest not in chosen and all(left[each] > 1 for each in labels[digest]):
                chosen.add(digest)
                left.subtract(labels[digest])
                wanted -= 1
    return {path for digest in chosen for path in contents[digest]}


def check_batch(dataset: Dataset, batch: int) -> None:
    """Raise ValueError, in one sentence, when there are fewer pictures to train on than a batch takes.

    >>> check_batch(Dataset(("a", "b"), ((Path("1.png"), 0), (Path("2.png"), 1)), (), "none"), 32)
    Traceback (most recent call last):
    ...
    ValueError: there are 2 pictures to train on, fewer than a batch of 32; lower the batch to 2, or add some
    """
    if len(dataset.train) < batch:
        raise ValueError(
            f"there are {len(dataset.train)} pictures to train on, fewer than a batch of {batch}; lower the batch to"
            f" {len(dataset.train)}, or add some"
        )


def _listed(classes: tuple[str, ...], found: Mapping[str, Iterable[Path]]) -> Labelled:
    return tuple((path, label) for label, name in enumerate(classes) for path in sorted(found.get(name, ())))


def _split(
    found: Mapping[str, list[Path]], val_share: float, seed: int
) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Those to learn from, and some of each class for validation, by rank of content; none where there is one alone."""
    train: dict[str, list[Path]] = {}
    val: dict[str, list[Path]] = {}
    for name, paths in found.items():
        contents: dict[str, list[Path]] = {}
        for path in paths:
            contents.setdefault(_content(path), []).append(path)
        ranked = sorted(contents, key=lambda digest: _rank(digest, seed))
        count = _val_count(val_share, len(ranked))
        train[name] = [path for digest in ranked[count:] for path in contents[digest]]
        if count:
            val[name] = [path for digest in ranked[:count] for path in contents[digest]]
    return train, val


def _rank(digest: str, seed: int) -> str:
    return hashlib.sha256(f"{seed} {digest}".encode()).hexdigest()


def _val_count(share: float, count: int) -> int:
    """How many of the different pictures of a class validate: one at least, and never all."""
    return min(max(1, round(share * count)), count - 1)


def _content(path: Path) -> str:
    """What tells a picture from others; of one that cannot be read, which is refused later, its path."""
    try:
        return sha256(path, max_bytes=MOST_BYTES)
    except (OSError, ValueError):
        return str(path)


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


class ViewedPictures(TorchDataset[Tensor]):
    """Augmented pictures by epoch and number.

    A picture's changes depend on the seed, the epoch and its file's content, not on where it stands or who loads it.

    Args:
        paths: of the files.
        labels: names of their classes, which `Augmentation.no_flip` may list.
        digests: sha256 of the files' contents.
        rule: the card's preprocessing.
        augmentation: what may be done.
        seed: of what is drawn.
        reading: other keywords of `Reading`.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[str],
        digests: Sequence[str],
        rule: Preprocessing,
        augmentation: Augmentation,
        seed: int,
        reading: Mapping[str, Any] | None = None,
    ) -> None:
        self.paths, self.labels, self.digests = paths, labels, digests
        self.rule, self.augmentation, self.seed = rule, augmentation, seed
        self.reading = Reading(rule.exif, **(reading or {}))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, place: Place) -> Tensor:
        """(height, width, 3) uint8, RGB."""
        epoch, number = place
        found = open_upright(self.paths[number], self.reading)
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


class _Tried(TorchDataset["Tensor | Exception"]):
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
