"""Which picture has which of a network's classes: class folders, or a table."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnets_torch.card import Card
from convnets_torch.folders import few
from convnets_torch.labelled import LabelledPictures, find_labelled, in_several
from convnets_torch.targets import class_name
from convnets_torch.training.several_labels import check_several, learnt_several
from convnets_torch.training.truth_labels import Labels, read_id_table, resolved_labels


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Pictures and the class of each.

    Attributes:
        folder: where they are.
        paths: of the N pictures; from class folders in the order of the folders' names, else sorted.
        labels: (N,) int64, class ids of the card; or where a picture may have several labels, (N, classes) bool.
        remarks: sentences on what its owner may not expect, such as classes without pictures.
    """

    folder: Path
    paths: tuple[Path, ...]
    labels: NDArray[Any]
    remarks: tuple[str, ...] = ()


def find_truth(
    card: Card,
    folder: str | os.PathLike[str],
    *,
    truth: str | os.PathLike[str] | None = None,
    id_table: str | os.PathLike[str] | None = None,
    labels: Labels = "auto",
    columns: Sequence[str] | None = None,
    partial: bool = False,
    exclude: str | Iterable[str] = (),
) -> GroundTruth:
    """Find out which picture has which class, and refuse what would be a guess.

    Without a table, a sub-folder is a class, and its name says which: for ImageNet's classes a wnid, or words that
    `synsets.class_id` takes for one class alone; for others the card's class name, letter by letter. Of folders
    `train`, `val` and `test` with class folders the pictures of `test` are taken, or where there are none, of `val`; so
    are those of a table's column `split`.

    A table is as for `find_dataset`; or it has the label alone in each line, for the pictures of the folder sorted by
    name, as ILSVRC's validation file does. Labels are written as the names of sub-folders are; or all are class ids, 0
    to classes - 1, which numbers are taken for only where they cannot count from 1: there is a 0, and none beyond the
    last class; and where the names of the network's classes have no numbers that say otherwise.

    A picture may have several labels where the table says so, as for `find_dataset`; so it may where the network was
    fine-tuned on such pictures, though each one here has one label.

    Args:
        card: of the network whose classes are meant.
        folder: of the pictures; or a table of the pictures beside and below it.
        truth: a table of the pictures in the folder, or None for class folders.
        id_table: a file of lines "id wnid", which says that labels are ILSVRC's ids, and what they mean.
        labels: "class-ids" says that numbers are class ids.
        columns, partial, exclude: as in `find_dataset`.

    Raises:
        OSError: a file or folder is missing or cannot be read.
        ValueError: labels mean no class, or several, or are numbers of unknown meaning; two folders are one class; the
            table has no row for a picture, or a row without one; pictures have several labels, or none of them has
            one, and the network's activation is not sigmoid.

    Warns:
        PictureWarning: files were left out, as by `find_pictures`.
    """
    if card.classes < 2:
        raise ValueError(
            f"the network has {card.classes} classes, so none could be mistaken for another; give 2 or more"
        )
    table = None if id_table is None else read_id_table(Path(id_table))
    found, told = _judged(find_labelled(folder, truth, columns=columns, partial=partial, exclude=exclude, several=True))
    of_folders = found.where.is_dir()
    if not found.paths:
        raise ValueError(f"{folder}: none of {len(found.empty)} sub-folders holds a picture; fill them")
    where = f"sub-folders of {found.where}" if of_folders else str(found.where)
    texts = [label for each in found.every for label in each]
    if found.several is not None:
        check_several(card)
        if not texts:
            raise ValueError(f"{where}: no picture to judge by has a label; add some that have")
    try:
        meant, remarks = resolved_labels(card, texts, where, labels=labels, table=table)
    except ValueError as error:
        if found.doubt:
            raise ValueError(f"{error}; {found.doubt}") from None
        raise
    several = [class_id for class_id, count in Counter(meant.values()).items() if count > 1]
    if several and of_folders:
        names = " and ".join(name for name, class_id in meant.items() if class_id == several[0])
        raise ValueError(f"{folder}: the sub-folders {names} are one class, {class_name(card, several[0])}; merge them")
    if twice := in_several(found.by_class()):
        told.append(f"{twice}: no answer is right for all of them")
    numbers = np.array([meant[label] for label in texts], np.int64)
    truths: NDArray[Any] = numbers
    if found.several is not None or learnt_several(card):
        truths = np.zeros((len(found.paths), card.classes), np.bool_)
        truths[np.repeat(np.arange(len(found.paths)), [len(each) for each in found.every]), numbers] = True
        if found.several is None:
            told.append("each picture has one label; the network, which learnt several, is judged by each label alone")
    place = Path(folder) if Path(folder).is_dir() else Path(folder).parent
    return GroundTruth(place, found.paths, truths, (*found.remarks, *told, *remarks, *_missing(card, numbers)))


def _judged(found: LabelledPictures) -> tuple[LabelledPictures, list[str]]:
    """The side to judge a network by, where pictures are divided, and a remark on that."""
    sides = Counter(found.sides)
    if None in sides or not sides:
        return found, []
    side = "test" if sides["test"] else "val"
    if not sides[side]:
        raise ValueError(
            f"{found.where} has labelled pictures for training alone, of which a network may have learnt; name their"
            " folder itself if they are meant"
        )
    others = " and ".join(f"{count} of {name}" for name, count in sorted(sides.items()) if name != side)
    left = f"; left out {others}" if others else ""
    return found.of(side), [f"{found.where}: judged by the {sides[side]} pictures of {side}{left}"]


def _missing(card: Card, numbers: NDArray[np.int64]) -> list[str]:
    """A remark on classes without pictures."""
    missing = np.flatnonzero(np.bincount(numbers, minlength=card.classes) == 0).tolist()
    if not missing:
        return []
    names = [class_name(card, class_id).split(",")[0] for class_id in missing]
    return [f"{len(missing)} of the {card.classes} classes have no pictures ({few(names)})"]
