"""Which picture has which of a network's classes: class folders, or a flat folder with a file of labels."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnets_torch.card import Card
from convnets_torch.embeddings.probe_features import class_folders
from convnets_torch.folders import ENDINGS, find_pictures
from convnets_torch.targets import class_name
from convnets_torch.training.truth_labels import Labels, read_id_table, read_lines, resolved_labels

HEADERS = ("path", "image", "file", "filename", "name", "picture")  # of a first column
FEW = 5  # names in a sentence


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Pictures and the class of each.

    Attributes:
        folder: where they are.
        paths: of the N pictures; from class folders in the order of the folders' names, else sorted.
        labels: (N,) int64, class ids of the card.
        remarks: sentences on what its owner may not expect, such as classes without pictures.
    """

    folder: Path
    paths: tuple[Path, ...]
    labels: NDArray[np.int64]
    remarks: tuple[str, ...] = ()


def find_truth(
    card: Card,
    folder: str | os.PathLike[str],
    *,
    truth: str | os.PathLike[str] | None = None,
    id_table: str | os.PathLike[str] | None = None,
    labels: Labels = "auto",
) -> GroundTruth:
    """Find out which picture has which class, and refuse what would be a guess.

    Without a file, a sub-folder is a class, and its name says which: for ImageNet's classes a wnid, or words that
    `synsets.class_id` takes for one class alone; for others the card's class name, letter by letter.

    A file `truth` has a line for each picture of the folder: its name and its label, as CSV (commas, tabs or
    semicolons) or with blanks between; or the label alone, for the pictures sorted by name, as ILSVRC's validation
    file has it. Labels are written as the names of sub-folders are; or all are class ids, 0 to classes - 1, which
    numbers are taken for only where they cannot count from 1: there is a 0, and none beyond the last class.

    Args:
        card: of the network whose classes are meant.
        folder: of the pictures.
        truth: the file, or None for class folders.
        id_table: a file of lines "id wnid", which says that labels are ILSVRC's ids, and what they mean.
        labels: "class-ids" says that numbers are class ids.

    Raises:
        OSError: a file or folder is missing or cannot be read.
        ValueError: labels mean no class, or several, or are numbers of unknown meaning; two folders are one class; the
            file's lines are not as many as the pictures, or name others.

    Warns:
        PictureWarning: files were left out, as by `find_pictures`.
    """
    if card.classes < 2:
        raise ValueError(
            f"the network has {card.classes} classes, so none could be mistaken for another; give 2 or more"
        )
    table = None if id_table is None else read_id_table(Path(id_table))
    if truth is not None:
        return _of_file(card, Path(folder), Path(truth), labels, table)
    if Path(folder).is_dir() and not any(place.is_dir() and place.name[0] != "." for place in Path(folder).iterdir()):
        raise ValueError(
            f"{folder} has no sub-folders, so nothing says which class a picture has; sort them into a sub-folder for"
            " each class, or name a file with their labels (--truth, truth in Python)"
        )
    found = class_folders(folder)
    if not any(found.values()):
        raise ValueError(f"{folder}: none of {len(found)} sub-folders holds a picture; fill them")
    meant, remarks = resolved_labels(card, found, f"sub-folders of {folder}", labels=labels, table=table)
    several = [class_id for class_id, count in Counter(meant.values()).items() if count > 1]
    if several:
        names = " and ".join(name for name, class_id in meant.items() if class_id == several[0])
        raise ValueError(f"{folder}: the sub-folders {names} are one class, {class_name(card, several[0])}; merge them")
    paths = tuple(path for pictures in found.values() for path in pictures)
    numbers = np.array([meant[name] for name, pictures in found.items() for _ in pictures], np.int64)
    return GroundTruth(Path(folder), paths, numbers, (*remarks, *_missing(card, numbers)))


def _of_file(card: Card, folder: Path, file: Path, labels: Labels, table: Mapping[int, str] | None) -> GroundTruth:
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder; name the folder of the pictures that {file} labels")
    pictures = find_pictures(folder)
    lines = read_lines(file)
    if not 0 <= len(lines) - len(pictures) <= 1:  # before each is looked into; there may be a header
        raise _other_count(file, len(lines), folder, len(pictures))
    known = _names(folder, pictures)
    split = [_split(text, known) for _, text in lines]
    if lines and split[0] is None and any(split) and _is_header(lines[0][1]):
        lines, split = lines[1:], split[1:]
    if len(lines) != len(pictures):
        raise _other_count(file, len(lines), folder, len(pictures))
    named = [pair[0] for pair in split if pair is not None]
    if len(named) == len(lines) or any(Path(name).suffix.lower() in ENDINGS for name in named):
        texts = _by_name(file, folder, pictures, known, lines, split)
    else:
        below = [path for path in pictures if path.parent != folder]
        if below:
            raise ValueError(
                f"{file} has labels without names, for the pictures of one folder sorted by name, but {folder} has"
                f" sub-folders ({below[0].parent.name}); write the name of the picture before each label"
            )
        texts = [text for _, text in lines]
    meant, remarks = resolved_labels(
        card, texts, str(file), labels=labels, table=None if table is None else dict(table)
    )
    numbers = np.array([meant[text] for text in texts], np.int64)
    return GroundTruth(folder, tuple(pictures), numbers, (*remarks, *_missing(card, numbers)))


def _other_count(file: Path, lines: int, folder: Path, pictures: int) -> ValueError:
    return ValueError(f"{file} has {lines} lines, but {folder} holds {pictures} pictures; a line for each is wanted")


def _names(folder: Path, pictures: Sequence[Path]) -> dict[str, int]:
    """What may stand for a picture -> its place: its path below the folder, or its name or stem where unique."""
    found = {path.relative_to(folder).as_posix(): place for place, path in enumerate(pictures)}
    for names in ([path.name for path in pictures], [path.stem for path in pictures]):
        counts = Counter(names)
        for place, name in enumerate(names):
            if counts[name] == 1:
                found.setdefault(name, place)
    return found


def _split(text: str, known: Mapping[str, int]) -> tuple[str, str] | None:
    """A line as a picture's name and its label; None where it does not begin with a name."""
    pairs: list[tuple[str, str]] = []
    for mark in ",\t;":
        if mark in text:
            fields = [field.strip() for field in next(csv.reader([text], delimiter=mark, skipinitialspace=True))]
            if len(fields) == 2:
                pairs.append((fields[0], fields[1]))
    for parts in (text.split(None, 1), text.rsplit(None, 1)):
        if len(parts) == 2:
            pairs.append((parts[0], parts[1]))
    pairs = [(name.removeprefix("./"), label) for name, label in pairs if label]
    of_a_picture = [pair for pair in pairs if Path(pair[0]).suffix.lower() in ENDINGS]
    return next((pair for pair in pairs if pair[0] in known), of_a_picture[0] if of_a_picture else None)


def _is_header(text: str) -> bool:
    for mark in ",;":
        text = text.replace(mark, " ")
    return (text.lower().split() or [""])[0].strip('"') in HEADERS


def _by_name(
    file: Path,
    folder: Path,
    pictures: Sequence[Path],
    known: Mapping[str, int],
    lines: Sequence[tuple[int, str]],
    split: Sequence[tuple[str, str] | None],
) -> list[str]:
    """The label of each picture, from lines that name them; as many as there are pictures."""
    bare = [f"line {number}: {text!r:.60}" for (number, text), pair in zip(lines, split, strict=True) if pair is None]
    if bare:
        raise ValueError(f"{file}: {len(bare)} lines are no name and label ({_few(bare)})")
    pairs = [pair for pair in split if pair is not None]
    if unknown := [name for name, _ in pairs if name not in known]:
        raise ValueError(f"{file} names {len(unknown)} pictures that are not in {folder} ({_few(unknown)})")
    texts: dict[int, str] = {}
    for name, label in pairs:
        if known[name] in texts:
            raise ValueError(f"{file} names {name} twice; a line for each picture is wanted")
        texts[known[name]] = label
    return [texts[place] for place in range(len(pictures))]


def _missing(card: Card, numbers: NDArray[np.int64]) -> list[str]:
    """A remark on classes without pictures."""
    missing = np.flatnonzero(np.bincount(numbers, minlength=card.classes) == 0).tolist()
    if not missing:
        return []
    names = [class_name(card, class_id).split(",")[0] for class_id in missing]
    return [f"{len(missing)} of the {card.classes} classes have no pictures ({_few(names)})"]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:FEW]) + (", ..." if len(names) > FEW else "")
