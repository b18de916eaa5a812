"""Labelled pictures to learn from and to be judged by: class folders, folders train and val, or a table in CSV.

Where nothing says which pictures are for validation, the content of a file decides: a picture's rank in its class is
the sha256 of the seed and of the file's own sha256. So a class added, a folder moved or a file renamed changes no other
picture's side, folders and a table of the same files are split alike, and exact copies stay together.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from convnets_torch.embeddings.probe_features import find_classes
from convnets_torch.files import sha256
from convnets_torch.folders import ENDINGS
from convnets_torch.images import MOST_BYTES, PictureWarning
from convnets_torch.training.tables import Row, read_table

VAL = ("val", "valid", "validation")  # names of a folder

Labelled = tuple[tuple[Path, int], ...]


@dataclass(frozen=True)
class Dataset:
    """Pictures and their classes, on two sides.

    Attributes:
        classes: names, sorted as text.
        train: each picture to learn from, and the place of its class in `classes`; sorted by class, then by path.
        val: the same of those to judge by. Every class is on both sides.
        split: how `val` came to be, in words.
        remarks: sentences on what was left out or is doubtful.
    """

    classes: tuple[str, ...]
    train: Labelled
    val: Labelled
    split: str
    remarks: tuple[str, ...] = ()


def find_dataset(data: str | os.PathLike[str], *, val_share: float = 0.2, seed: int = 0) -> Dataset:
    """The pictures that a folder or a table gives, with their classes and sides.

    Args:
        data: one of
            a folder with a sub-folder of pictures for each class;
            a folder with the folders `train` and `val` (or `valid`, `validation`), which have such sub-folders;
            a `.csv` file in UTF-8 with a header: a column `path` (or `image`, `file`, `filename`; from the folder of
            the table), a column `label` (or `class`), and perhaps a column `split` of the words train and val.
        val_share: share of the different pictures of each class that become `val` where the data do not say it; at
            least one is on each side. Above 0 and below 1.
        seed: of that choice.

    Raises:
        OSError: the data are missing or cannot be read; files of the table are missing.
        ValueError: one class alone, an empty one, one that is on one side alone, or one with a single picture to split;
            pictures in deeper folders; a table without the columns, or with rows that say nothing sure; `val_share`
            is out of range.

    Warns:
        PictureWarning: pictures beside the class folders, and files that are no pictures, were left out.

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
    path = Path(data)
    if path.suffix.lower() == ".csv" and not path.is_dir():
        return _of_table(path, val_share, seed)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is neither a folder nor a .csv file; name a folder with class folders")
    places = _folders(path) if path.exists() else []
    trains, vals = ([place for place in places if place.name.lower() in names] for names in (("train",), VAL))
    if trains and vals:
        for same in (trains, vals):
            if len(same) > 1:
                words = " and ".join(place.name for place in same)
                raise ValueError(f"{path} has the folders {words}, which mean the same; remove one")
        return _of_sides(path, trains[0], vals[0], [place.name for place in places if place not in trains + vals])
    return _split(_classes(path), f"{path}", val_share, seed)


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


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _classes(folder: Path, *, beside_val: bool = False) -> dict[str, list[Path]]:
    """`find_classes`, but pictures lie in the class folders themselves; beside `val`, a folder is one side of two."""
    deep: list[Path] = []  # folders of pictures below class folders
    flat: set[Path] = set()  # class folders with pictures of their own
    for place in _folders(folder) if folder.is_dir() else []:
        for below, names, files in os.walk(place):
            names[:] = [name for name in names if not name.startswith(".")]
            if any(Path(file).suffix.lower() in ENDINGS and not file.startswith(".") for file in files):
                if Path(below) == place:
                    flat.add(place)
                else:
                    deep.append(Path(below))
    if deep:
        _, above, place = min((_root(each).name.lower() != "train", _root(each), each) for each in deep)
        top = folder / place.relative_to(folder).parts[0]
        if top in flat:
            advice = f"move them into {top}"
        elif beside_val:
            advice = f"move its class folders into {folder}"
        else:
            advice = f"give {above} if its sub-folders are the classes"
        raise ValueError(
            f"{place} is too deep: it holds pictures below {top}, but a class is a folder with its pictures directly in"
            f" it; {advice}"
        )
    return find_classes(folder)


def _root(place: Path) -> Path:
    """What to give where `place` is a class folder."""
    above = place.parent
    siblings = {entry.name.lower() for entry in _folders(above.parent)}
    sides = "train" in siblings and siblings & {*VAL} and above.name.lower() in ("train", *VAL)
    return above.parent if sides else above


def _of_sides(folder: Path, train: Path, val: Path, others: list[str]) -> Dataset:
    loose = sorted(
        entry.name for entry in folder.iterdir() if entry.suffix.lower() in ENDINGS and not entry.name.startswith(".")
    )
    if loose:
        sentence = f"{folder}: left out {len(loose)} pictures that are neither in {train.name} nor in {val.name}"
        warnings.warn(f"{sentence} ({_few(loose)})", PictureWarning, stacklevel=3)
    learnt, judged = ({entry.name for entry in _folders(side)} for side in (train, val))
    if learnt and judged:
        _check_sides(f"{folder}", learnt, judged, train.name, val.name)
    found = [_classes(side, beside_val=True) for side in (train, val)]
    classes = tuple(sorted(found[0]))
    remarks = (f"{folder}: left out the folders {_few(others)}, neither {train.name} nor {val.name}",) if others else ()
    split = f"folders {train.name} and {val.name}"
    return Dataset(classes, _listed(classes, found[0]), _listed(classes, found[1]), split, remarks)


def _of_table(path: Path, val_share: float, seed: int) -> Dataset:
    rows = read_table(path)
    tested = sum(row.side == "test" for row in rows)
    remarks = (f"{path}: left out {tested} rows whose split is test",) if tested else ()
    found = _by_label(row for row in rows if row.side != "test")
    if len(found) < 2:
        alone = ", ".join(found) or "none"
        raise ValueError(f"{path} has one class alone ({alone}), so nothing to tell apart; add rows of another")
    if rows[0].side is None:
        return _split(found, f"{path}", val_share, seed, remarks)
    train, val = (_by_label(row for row in rows if row.side == side) for side in ("train", "val"))
    _check_sides(f"{path}", train, val, "train", "val")
    classes = tuple(sorted(found))
    return Dataset(classes, _listed(classes, train), _listed(classes, val), f"column split of {path.name}", remarks)


def _by_label(rows: Iterable[Row]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for row in rows:
        found.setdefault(row.label, []).append(row.path)
    return found


def _check_sides(where: str, one: Iterable[str], other: Iterable[str], name: str, other_name: str) -> None:
    """Refuse classes that are on one side alone."""
    one, other = set(one), set(other)
    for alone, has, lacks in ((one - other, name, other_name), (other - one, other_name, name)):
        if alone:
            raise ValueError(
                f"{where}: {len(alone)} classes are in {has} and not in {lacks} ({_few(sorted(alone))}); a class needs"
                " pictures on both sides: add them, or remove the class"
            )


def _listed(classes: tuple[str, ...], found: Mapping[str, Iterable[Path]]) -> Labelled:
    return tuple((path, label) for label, name in enumerate(classes) for path in sorted(found[name]))


def _split(
    found: Mapping[str, list[Path]], where: str, val_share: float, seed: int, remarks: tuple[str, ...] = ()
) -> Dataset:
    """Some of each class for validation, by rank of content."""
    train: dict[str, list[Path]] = {}
    val: dict[str, list[Path]] = {}
    places: dict[str, Path] = {}  # content -> one of its pictures
    classes_of: Counter[str] = Counter()
    few = []
    for name, paths in found.items():
        contents: dict[str, list[Path]] = {}
        for path in paths:
            contents.setdefault(_content(path), []).append(path)
        places |= {digest: group[0] for digest, group in contents.items()}
        classes_of.update(contents.keys())
        if len(contents) < 2:
            few.append(name)
            continue
        ranked = sorted(contents, key=lambda digest: hashlib.sha256(f"{seed} {digest}".encode()).hexdigest())
        count = min(max(1, round(val_share * len(ranked))), len(ranked) - 1)
        val[name] = [path for digest in ranked[:count] for path in contents[digest]]
        train[name] = [path for digest in ranked[count:] for path in contents[digest]]
    if few:
        raise ValueError(
            f"{where}: {len(few)} classes have one picture alone, or copies of one ({_few(few)}), but each side needs"
            " one; add pictures, or remove the classes"
        )
    if several := [digest for digest, number in classes_of.items() if number > 1]:
        places_of = places[several[0]]
        remarks += (f"{where}: {len(several)} pictures stand in several classes, such as {places_of}",)
    classes = tuple(sorted(found))
    split = f"{100 * val_share:g} % of each class, seed {seed}"
    return Dataset(classes, _listed(classes, train), _listed(classes, val), split, remarks)


def _content(path: Path) -> str:
    """What tells a picture from others; of one that cannot be read, which is refused later, its path."""
    try:
        return sha256(path, max_bytes=MOST_BYTES)
    except (OSError, ValueError):
        return str(path)


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
