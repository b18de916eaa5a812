"""Find labelled pictures for fine-tuning, split them into training and validation, and load them in batches.

If the data have no validation split, file contents determine it: pictures of a class are sorted by the sha256 of the
seed and the file's own sha256. So adding a class, moving a folder or renaming a file does not affect other pictures,
folders and a table of the same files are split alike, and exact copies stay together. Multi-label pictures are split in
this way for each label, from the rarest label on.
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

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from convnets_torch.files import sha256
from convnets_torch.images.decoding import AS_IS, MOST_BYTES, Reading, decode
from convnets_torch.images.finding import few
from convnets_torch.images.labelled import (
    LabelledPictures,
    check_classes,
    check_once,
    find_labelled,
    in_several,
    number_notes,
)
from convnets_torch.images.preprocessing import Preprocessing
from convnets_torch.options import FormerAttribute
from convnets_torch.training.augmentation import Augmentation, view

LabelledPaths = tuple[tuple[Path, int], ...]


@dataclass(frozen=True)
class Dataset:
    """Labelled pictures for training and validation.

    Attributes:
        classes: names, sorted as text.
        train: (path, index of its class in `classes`, or of its label set in `sets`), sorted by index, then path.
        val: the same for validation; classes with a single picture, or without a validation picture, have none.
        split: how `val` was chosen, in words.
        notes: on what was left out or is doubtful.
        sets: for multi-label data, the distinct label sets, as indices in `classes`; otherwise empty.
    """

    classes: tuple[str, ...]
    train: LabelledPaths
    val: LabelledPaths
    split: str
    notes: tuple[str, ...] = ()
    sets: tuple[tuple[int, ...], ...] = ()
    remarks = FormerAttribute("notes")

    def names_of(self, label: int) -> tuple[str, ...]:
        """Class names of a picture, from its index in `train` or `val`."""
        return tuple(self.classes[place] for place in (self.sets[label] if self.sets else (label,)))

    def shown_as(self, label: int, no_flip: Collection[str]) -> str:
        """One class name of a picture: one in `no_flip` if any, else the first, or "" if it has no class."""
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
    """Find the pictures of a folder or table, with their classes and their split.

    Args:
        data: one of
            a folder with a sub-folder of pictures for each class;
            a folder with the folders `train` and optionally `val` (or `valid`, `validation`) and `test`, each with such
            sub-folders; pictures of `test` are left out;
            a table (`.csv`, `.tsv`, `.txt`) of the pictures beside and below it: a column of names (`path`, `file`,
            `image_id`, `id`, ...), one of labels (`label`, `class`, `breed`, ...) or one for each class with a 1 for
            the picture's class, and optionally a column `split` with train, val and test. A picture may have several
            labels (`rust|scab`, or a 1 in several columns) or none (no 1 in these columns).
        truth: such a table for the pictures in the folder `data`.
        columns: the names of the table's columns of pictures and labels.
        partial: accept pictures of the folder without a row, and rows without a picture.
        exclude: patterns of files and folders to leave out, as in `find_pictures`.
        val_share: fraction of the distinct pictures of each class used for validation if the data have no split; above
            0 and below 1. Each class with two pictures or more has at least one on each side. For multi-label data,
            the fraction is approximate, since labels occur together.
        seed: of that split.

    Raises:
        OSError: the data are missing or cannot be read; files of the table are missing.
        ValueError: there is only one class, an empty one, or one that is only in `val`; a picture is in several classes
            or has several label sets; pictures are in deeper folders, so that the class is ambiguous; a folder of
            pictures has no labels; a table lacks the columns, or has ambiguous rows or labels that look like
            measurements; `val_share` is out of range.

    Warns:
        PictureWarning: pictures beside the class folders, hidden files and files that are not pictures were left out.

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
    notes = [*kept.notes, *number_notes(kept)]
    if tested := len(found.paths) - len(kept.paths):
        notes.append(f"{found.where}: left out {tested} pictures of test")
    if kept.several is not None:
        return _multi_label(kept, val_share, seed, notes)
    check_once(kept.by_class())
    train, val, split = kept.of("train", None).by_class(), kept.of("val").by_class(), kept.split
    _check_in_train(found.where, train, val)
    if not val:
        train, val = _split_classes(train, val_share, seed)
        split = f"{100 * val_share:g} % of each class, seed {seed}"
    if not val:
        raise ValueError(
            f"{found.where}: every class has only one picture, or copies of one, so none is left for validation; add"
            " some"
        )
    notes += _missing_in_val(found.where, train, val)
    classes = tuple(sorted(train))
    return Dataset(classes, _as_labelled(classes, train), _as_labelled(classes, val), split, tuple(notes))


def _check_in_train(where: Path, train: Collection[str], val: Collection[str]) -> None:
    if alone := sorted(set(val) - set(train)):
        raise ValueError(
            f"{where}: {len(alone)} classes are in val and not in train ({few(alone)}), so they cannot be learnt;"
            " add pictures to train, or exclude the classes (--exclude, exclude in Python)"
        )


def _missing_in_val(where: Path, train: Collection[str], val: Collection[str]) -> list[str]:
    """A note on classes without validation pictures."""
    missing = sorted(set(train) - set(val))
    if not missing:
        return []
    return [
        f"{where}: {len(missing)} classes have no validation pictures ({few(missing)}); they are trained, but not"
        " evaluated"
    ]


def _multi_label(found: LabelledPictures, val_share: float, seed: int, notes: Sequence[str]) -> Dataset:
    """The dataset of multi-label pictures."""
    if words := in_several(found.by_class()):
        raise ValueError(f"{words}; give them the same labels, or exclude them (--exclude, exclude in Python)")
    every = dict(zip(found.paths, found.every, strict=True))
    val, split = set(found.of("val").paths), found.split
    if not val:
        val = _split_labels(every, val_share, seed)
        split = f"{100 * val_share:g} % of each label, seed {seed}"
    train = every.keys() - val
    learnt, judged = ({label for path in side for label in every[path]} for side in (train, val))
    _check_in_train(found.where, learnt, judged)
    if not judged:
        raise ValueError(f"{found.where}: no validation picture has a label; add pictures with labels")
    classes = tuple(sorted(learnt))
    places = {name: place for place, name in enumerate(classes)}
    sets = {path: tuple(sorted(places[label] for label in labels)) for path, labels in every.items()}
    numbers = {each: number for number, each in enumerate(sorted(set(sets.values())))}

    def listed(side: Iterable[Path]) -> LabelledPaths:
        return tuple((path, number) for number, path in sorted((numbers[sets[path]], path) for path in side))

    notes = (*notes, *_missing_in_val(found.where, learnt, judged))
    return Dataset(classes, listed(train), listed(val), split, notes, tuple(numbers))


def _split_labels(every: Mapping[Path, tuple[str, ...]], val_share: float, seed: int) -> set[Path]:
    """Choose by content rank a share of each label but not all, rarest first, then of unlabelled pictures."""
    contents: dict[str, list[Path]] = {}
    for path in every:
        contents.setdefault(_content(path), []).append(path)
    labels = {digest: every[paths[0]] or ("",) for digest, paths in contents.items()}  # copies have the same labels
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
    """Raise ValueError if there are fewer training pictures than the batch size.

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


def _as_labelled(classes: tuple[str, ...], found: Mapping[str, Iterable[Path]]) -> LabelledPaths:
    return tuple((path, label) for label, name in enumerate(classes) for path in sorted(found.get(name, ())))


def _split_classes(
    found: Mapping[str, list[Path]], val_share: float, seed: int
) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Split each class into training and validation by content rank; a single picture is for training."""
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
    """Number of distinct pictures of a class for validation: at least one, but never all."""
    return min(max(1, round(share * count)), count - 1)


def _content(path: Path) -> str:
    """Digest of a picture's content; the path if it cannot be read, which is reported later."""
    try:
        return sha256(path, max_bytes=MOST_BYTES)
    except (OSError, ValueError):
        return str(path)


EpochItem = tuple[int, int]  # epoch, number of the picture


def batches(count: int, batch: int, seed: int, epoch: int) -> list[list[int]]:
    """Return an epoch's batches of indices, shuffled; the last one may be smaller.

    >>> list(map(len, batches(10, 4, seed=0, epoch=1)))
    [4, 4, 2]
    >>> sorted(batches(5, 5, seed=0, epoch=1)[0])
    [0, 1, 2, 3, 4]
    """
    order: list[int] = np.random.default_rng((seed, epoch)).permutation(count).tolist()
    return [order[start : start + batch] for start in range(0, count, batch)]


class ViewedPictures(TorchDataset[Tensor]):
    """Augmented pictures, indexed by (epoch, number).

    The augmentation of a picture depends on the seed, the epoch and the file content, but not on its position or on the
    process that loads it.

    Args:
        paths: of the files.
        labels: names of their classes, which `Augmentation.no_flip` may list.
        digests: sha256 of the files' contents.
        rule: the card's preprocessing.
        augmentation: limits of the augmentation.
        seed: of the augmentation.
        reading: how files are decoded; `rule` decides on EXIF.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: Sequence[str],
        digests: Sequence[str],
        rule: Preprocessing,
        augmentation: Augmentation,
        seed: int,
        reading: Reading = AS_IS,
    ) -> None:
        self.paths, self.labels, self.digests = paths, labels, digests
        self.rule, self.augmentation, self.seed = rule, augmentation, seed
        self.reading = reading.for_rule(rule)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: EpochItem) -> Tensor:
        """Return (height, width, channels) uint8: RGB, grey or RGBA."""
        epoch, number = item
        found = decode(self.paths[number], self.reading)
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


def loaded(views: ViewedPictures, steps: Sequence[Sequence[EpochItem]], workers: int) -> Generator[Tensor, None, None]:
    """Yield the batch of each step, (N, height, width, C) uint8, loaded in `workers` processes or, if 0, in this one.

    Raises:
        OSError, ValueError: a picture can no longer be read; the message is the same in any process.
    """
    loader: DataLoader[Tensor | Exception] = DataLoader(
        _ViewsOrErrors(views),
        batch_sampler=list(map(list, steps)),
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=partial(_enter_folder, Path.cwd()),
        generator=torch.Generator(),  # worker seeds are unused; do not draw them from the global generator
    )
    with _safe_import_path() if workers else contextlib.nullcontext():
        found = iter(loader)
    for batch in found:
        if isinstance(batch, Exception):
            raise batch
        yield batch


@contextlib.contextmanager
def _safe_import_path() -> Iterator[None]:
    """Keep worker interpreters from importing modules from the current folder, as `python -c` would."""
    if multiprocessing.get_start_method() == "fork":  # starts no new interpreter
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
    else:  # workers start in Python's own folder, and `_enter_folder` changes to this one after their imports
        before = Path.cwd()
        os.chdir(Path(os.__file__).parent)
        try:
            yield
        finally:
            os.chdir(before)


def _enter_folder(folder: Path, worker: int) -> None:
    os.chdir(folder)


class _ViewsOrErrors(TorchDataset["Tensor | Exception"]):
    """Views or the errors of loading them; raised in a worker, an error's message would be the worker's traceback."""

    def __init__(self, views: ViewedPictures) -> None:
        self._views = views

    def __getitem__(self, item: EpochItem) -> Tensor | Exception:
        try:
            return self._views[item]
        except (OSError, ValueError) as error:
            return error


def _collate(items: Sequence[Tensor | Exception]) -> Tensor | Exception:
    errors = [item for item in items if isinstance(item, Exception)]
    return errors[0] if errors else torch.stack([item for item in items if isinstance(item, Tensor)])
