"""Labelled pictures to learn from and to be judged by, on two sides.

Where nothing says which pictures are for validation, the content of a file decides: a picture's rank in its class is
the sha256 of the seed and of the file's own sha256. So a class added, a folder moved or a file renamed changes no other
picture's side, folders and a table of the same files are split alike, and exact copies stay together.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from convnets_torch.files import sha256
from convnets_torch.folders import few
from convnets_torch.images import MOST_BYTES
from convnets_torch.labelled import check_classes, check_once, find_labelled, number_remarks

Labelled = tuple[tuple[Path, int], ...]


@dataclass(frozen=True)
class Dataset:
    """Pictures and their classes, on two sides.

    Attributes:
        classes: names, sorted as text.
        train: each picture to learn from, and the place of its class in `classes`; sorted by class, then by path.
        val: the same of those to judge by; classes with a single picture, or without a validation picture, have none.
        split: how `val` came to be, in words.
        remarks: sentences on what was left out or is doubtful.
    """

    classes: tuple[str, ...]
    train: Labelled
    val: Labelled
    split: str
    remarks: tuple[str, ...] = ()


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
            that of the picture's, and perhaps a column `split` of the words train, val and test.
        truth: such a table for the pictures in the folder `data`.
        columns: the names of the table's columns of pictures and labels.
        partial: go on where pictures of the folder have no row, or pictures of the table are missing.
        exclude: patterns of files and folders that are left out, as in `find_pictures`.
        val_share: share of the different pictures of each class that become `val` where the data have no such side.
            Of each class with two pictures or more, at least one is on each side. Above 0 and below 1.
        seed: of that choice.

    Raises:
        OSError: the data are missing or cannot be read; files of the table are missing.
        ValueError: one class alone, an empty one, or one that is in `val` alone; one picture in several classes;
            pictures in deeper folders, so that it is not sure which ones are classes; pictures beside each other
            without labels; a table without the columns, with rows that say nothing sure or labels that look like
            measured values; `val_share` is out of range.

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
    found = find_labelled(data, truth, columns=columns, partial=partial, exclude=exclude)
    kept = found.of("train", "val", None)
    check_classes(kept)
    remarks = [*kept.remarks, *number_remarks(kept)]
    if tested := len(found.paths) - len(kept.paths):
        remarks.append(f"{found.where}: left out {tested} pictures of test")
    check_once(kept.by_class())
    train, val, split = kept.of("train", None).by_class(), kept.of("val").by_class(), kept.split
    if alone := sorted(set(val) - set(train)):
        raise ValueError(
            f"{found.where}: {len(alone)} classes are in val and not in train ({few(alone)}), so they cannot be learnt;"
            " add pictures to train, or leave the classes out (--exclude, exclude in Python)"
        )
    if not val:
        train, val = _split(train, val_share, seed)
        split = f"{100 * val_share:g} % of each class, seed {seed}"
    if not val:
        raise ValueError(
            f"{found.where}: every class has one picture alone, or copies of one, so none is left to judge by; add some"
        )
    if unjudged := sorted(set(train) - set(val)):
        remarks.append(
            f"{found.where}: {len(unjudged)} classes have no validation pictures ({few(unjudged)}); they are learnt all"
            " the same, and no figure says how well"
        )
    classes = tuple(sorted(train))
    return Dataset(classes, _listed(classes, train), _listed(classes, val), split, tuple(remarks))


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
        ranked = sorted(contents, key=lambda digest: hashlib.sha256(f"{seed} {digest}".encode()).hexdigest())
        count = min(max(1, round(val_share * len(ranked))), len(ranked) - 1)
        train[name] = [path for digest in ranked[count:] for path in contents[digest]]
        if count:
            val[name] = [path for digest in ranked[:count] for path in contents[digest]]
    return train, val


def _content(path: Path) -> str:
    """What tells a picture from others; of one that cannot be read, which is refused later, its path."""
    try:
        return sha256(path, max_bytes=MOST_BYTES)
    except (OSError, ValueError):
        return str(path)
