"""Read ground-truth labels from folders and tables and map them to the network's class ids.

ILSVRC numbers its classes from 1 to 1000 in its own order; networks number them from 0 to 999 in the order of wnids. A
file of numbers does not say which it uses, and a wrong guess mislabels nearly every picture.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from convnets_torch.card import Card
from convnets_torch.evaluation.several_labels import check_several, learnt_several
from convnets_torch.images.finding import few, normal
from convnets_torch.images.labelled import LabelledPictures, find_labelled, in_several, read_lines
from convnets_torch.options import FormerAttribute
from convnets_torch.text import check_choice
from convnets_torch.wordnet import synsets
from convnets_torch.wordnet.targets import class_keys, class_name


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """Pictures and the class of each.

    Attributes:
        folder: of the pictures.
        paths: of the N pictures; ordered by folder name for class folders, otherwise sorted.
        labels: (N,) int64, class ids of the card; or (N, classes) bool for multi-label data.
        notes: for the user, such as classes without pictures.
    """

    folder: Path
    paths: tuple[Path, ...]
    labels: NDArray[Any]
    notes: tuple[str, ...] = ()
    remarks = FormerAttribute("notes")


def find_truth(
    card: Card,
    folder: str | os.PathLike[str],
    *,
    truth: str | os.PathLike[str] | None = None,
    id_table: str | os.PathLike[str] | None = None,
    labels: LabelMeaning = "auto",
    columns: Sequence[str] | None = None,
    partial: bool = False,
    exclude: str | Iterable[str] = (),
) -> GroundTruth:
    """Find labelled pictures and their classes; raise an error instead of guessing an ambiguous label.

    Without a table, each sub-folder is a class. For ImageNet's classes its name is a wnid, or words that
    `synsets.class_id` resolves to exactly one class; for others it is exactly the card's class name. If there are
    folders `train`, `val` and `test` with class folders, or a table with a column `split`, the pictures of `test` are
    used, or those of `val` if there is no `test`.

    A table has the form described in `find_dataset`; or each line is only a label, for the pictures of the folder
    sorted by name, as in ILSVRC's validation file. Labels are written like the names of sub-folders; or all of them are
    class ids, 0 to classes - 1. Numbers are taken for class ids only if they cannot count from 1, i.e. there is a 0 and
    none exceeds the last class id, and if numbers in the network's class names do not suggest another order.

    The result is multi-label if the table is, as in `find_dataset`, or if the network was fine-tuned on multi-label
    pictures, even if each picture here has one label.

    Args:
        card: of the network that defines the classes.
        folder: of the pictures; or a table of the pictures beside and below it.
        truth: a table of the pictures in the folder, or None for class folders.
        id_table: a file of lines "id wnid"; labels are then ILSVRC's ids.
        labels: "class-ids" declares that numbers are class ids.
        columns, partial, exclude: as in `find_dataset`.

    Raises:
        OSError: a file or folder is missing or cannot be read.
        ValueError: a label matches no class or several, or is an ambiguous number; two folders are the same class; the
            table has no row for a picture, or a row for no picture; pictures are multi-label, or none has a label, and
            the network's activation is not sigmoid.

    Warns:
        PictureWarning: files were left out, as by `find_pictures`.
    """
    if card.classes < 2:
        raise ValueError(f"the network has {card.classes} classes, but an evaluation needs at least 2")
    table = None if id_table is None else read_id_table(Path(id_table))
    found, notes = _evaluation_split(
        find_labelled(folder, truth, columns=columns, partial=partial, exclude=exclude, several=True)
    )
    of_folders = found.where.is_dir()
    if not found.paths:
        raise ValueError(f"{folder}: none of {len(found.empty)} sub-folders holds a picture; fill them")
    where = f"sub-folders of {found.where}" if of_folders else str(found.where)
    texts = [label for each in found.every for label in each]
    if found.several is not None:
        check_several(card)
        if not texts:
            raise ValueError(f"{where}: no picture has a label; add pictures with labels")
    try:
        meant, doubts = resolved_labels(card, texts, where, labels=labels, table=table)
    except ValueError as error:
        if found.doubt:
            raise ValueError(f"{error}; {found.doubt}") from None
        raise
    several = [class_id for class_id, count in Counter(meant.values()).items() if count > 1]
    if several and of_folders:
        names = " and ".join(name for name, class_id in meant.items() if class_id == several[0])
        raise ValueError(f"{folder}: the sub-folders {names} are one class, {class_name(card, several[0])}; merge them")
    if twice := in_several(found.by_class()):
        notes.append(f"{twice}: no prediction is right for all of them")
    numbers = np.array([meant[label] for label in texts], np.int64)
    truths: NDArray[Any] = numbers
    if found.several is not None or learnt_several(card):
        truths = np.zeros((len(found.paths), card.classes), np.bool_)
        truths[np.repeat(np.arange(len(found.paths)), [len(each) for each in found.every]), numbers] = True
        if found.several is None:
            notes.append("each picture has one label, but the network is multi-label, so each label is evaluated alone")
    place = Path(folder) if Path(folder).is_dir() else Path(folder).parent
    return GroundTruth(place, found.paths, truths, (*found.notes, *notes, *doubts, *_missing(card, numbers)))


def _evaluation_split(found: LabelledPictures) -> tuple[LabelledPictures, list[str]]:
    """Select the `test` pictures, or else `val`, if there is a split, with a note about it."""
    sides = Counter(found.sides)
    if None in sides or not sides:
        return found, []
    side = "test" if sides["test"] else "val"
    if not sides[side]:
        raise ValueError(
            f"{found.where} has labelled pictures for training only, which the network may have learnt from; name their"
            " folder itself to evaluate on them"
        )
    others = " and ".join(f"{count} of {name}" for name, count in sorted(sides.items()) if name != side)
    left = f"; left out {others}" if others else ""
    return found.of(side), [f"{found.where}: evaluated on the {sides[side]} pictures of {side}{left}"]


def _missing(card: Card, numbers: NDArray[np.int64]) -> list[str]:
    """A note on classes without pictures."""
    missing = np.flatnonzero(np.bincount(numbers, minlength=card.classes) == 0).tolist()
    if not missing:
        return []
    names = [class_name(card, class_id).split(",")[0] for class_id in missing]
    return [f"{len(missing)} of the {card.classes} classes have no pictures ({few(names)})"]


LabelMeaning = Literal["auto", "class-ids"]
SHOWN = 10  # rejected labels listed in the message
MOST_PROBLEMS = 100  # failed look-ups before giving up; each takes milliseconds


def resolved_labels(
    card: Card, texts: Iterable[str], where: str, *, labels: LabelMeaning = "auto", table: dict[int, str] | None = None
) -> tuple[dict[str, int], list[str]]:
    """Map each distinct label to exactly one class; labels that match no class are reported together.

    Args:
        card, labels: as for `find_truth`.
        texts: wnids or words that mean exactly one class (ImageNet's 1,000), the card's own class names, or class ids.
        where: source of the labels, for messages.
        table: ILSVRC's ids -> wnids; every label is then such an id.

    Returns:
        label -> class id, and notes.

    Raises:
        ValueError: labels match no class, or are ambiguous numbers.
    """
    check_choice(labels, get_args(LabelMeaning), "labels")
    distinct = list(dict.fromkeys(texts))
    names = {} if card.imagenet else {normal(key): place for key, place in class_keys(card).items()}
    numbers = [int(text) for text in distinct if _is_number(text)]
    notes = []
    mean: Callable[[str], int]
    if table is not None:
        if labels == "class-ids":
            raise ValueError("class ids need no table of ILSVRC's ids; leave out one of the two")
        if not card.imagenet:
            raise ValueError("a table of ILSVRC's ids gives wnids, but the network's classes are not ImageNet's")
        mean = partial(_of_table, table=table)
    elif labels == "class-ids" or (len(numbers) == len(distinct) and not any(text in names for text in distinct)):
        if labels == "auto":
            _check_zero_based(card, numbers, where)
            _check_numbered_names(card, where)
            notes.append(f"{where}: the labels are taken for class ids, 0 ({class_name(card, 0)}) and up")
        mean = partial(_of_number, card=card)
    elif card.imagenet:
        mean = _of_words
    else:
        mean = partial(_of_name, names=names)
    found: dict[str, int] = {}
    problems: list[str] = []
    for text in distinct:
        try:
            found[text] = mean(text)
        except ValueError as error:
            problems.append(f"{text!r:.80} ({error})")
        if len(problems) == MOST_PROBLEMS:
            break
    if problems:
        shown = "; ".join(problems[:SHOWN])
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ValueError(
            f"{where}: {len(problems)} of {len(found) + len(problems)} labels are none of the network's {card.classes}"
            f" classes: {shown}{more}"
        )
    return found, notes


def read_id_table(path: Path) -> dict[int, str]:
    """Read ILSVRC's ids -> wnids from lines "id wnid" or "wnid id", separated by blanks or commas; ignore the rest.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is not such a pair, or an id has two wnids.
    """
    found: dict[int, str] = {}
    for number, line in ((number, text.strip()) for number, text in read_lines(path)):
        if not line:
            continue
        pair = line.replace(",", " ").split()[:2]
        ids, wnids = [text for text in pair if _is_number(text)], [text for text in pair if _is_wnid(text)]
        if len(ids) != 1 or len(wnids) != 1:
            raise ValueError(f"{path}, line {number} is {line!r:.80}; expected an id and a wnid, such as '1 n02119789'")
        before = found.setdefault(int(ids[0]), wnids[0])
        if before != wnids[0]:
            raise ValueError(f"{path}, line {number}: the id {ids[0]} is {wnids[0]}, but {before} in an earlier line")
    if not found:
        raise ValueError(f"{path} is empty; expected a line 'id wnid' for each class")
    return found


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _is_wnid(text: str) -> bool:
    return text[:1] == "n" and len(text) == 9 and text[1:].isascii() and text[1:].isdigit()


def _check_zero_based(card: Card, numbers: list[int], where: str) -> None:
    """Accept numbers as class ids only if they contain 0 and do not exceed the last class id."""
    first, last = min(numbers), max(numbers)
    if first == 0 and last < card.classes:
        return
    spoken = f"{where}: the labels are numbers from {first} to {last}"
    if not card.imagenet:
        raise ValueError(
            f"{spoken}, but class ids go from 0 to {card.classes - 1}, and without a 0 they may count from 1; use class"
            " names, or declare that they are class ids: --labels class-ids, labels='class-ids' in Python"
        )
    raise ValueError(
        f"{spoken}, and without a 0, or with a 1000, they may be ILSVRC's ids, which have another order; give the table"
        " of ILSVRC's ids and wnids (--id-table, id_table in Python), or declare that they are class ids, 0 to 999 in"
        " the order of wnids (--labels class-ids, labels='class-ids' in Python)"
    )


def _check_numbered_names(card: Card, where: str) -> None:
    """Reject numbers if the class names are numbered in another order, as `class_2` and `class_10` sorted as text."""
    if card.class_names is None or card.imagenet:
        return
    found = [re.fullmatch(r"(.*?)0*(\d+)", name, re.ASCII) for name in card.class_names]
    if None in found or len({each[1] for each in found if each}) > 1:
        return
    for place, (name, each) in enumerate(zip(card.class_names, found, strict=True)):
        if each and each[2] != str(place):
            raise ValueError(
                f"{where}: the labels are numbers, but the number {each[2]} may be the class {name} or class id"
                f" {each[2]}, while {name} is class id {place}; use class names, or declare that they are class ids:"
                " --labels class-ids, labels='class-ids' in Python"
            )


def _of_number(text: str, card: Card) -> int:
    if not _is_number(text) or int(text) >= card.classes:
        raise ValueError(f"not a class id from 0 to {card.classes - 1}")
    return int(text)


def _of_table(text: str, table: dict[int, str]) -> int:
    if not _is_number(text) or int(text) not in table:
        raise ValueError("not in the table of ILSVRC's ids")
    wnid = table[int(text)]
    try:
        return _of_words(wnid)
    except ValueError as error:
        raise ValueError(f"{wnid} in the table) ({error}") from None


def _of_words(text: str) -> int:
    if _is_number(text):
        raise ValueError("a number among words")
    try:
        return synsets.class_id(text)
    except ValueError as error:
        raise ValueError(str(error).split(";")[0]) from None


def _of_name(text: str, names: dict[str, int]) -> int:
    found = names.get(text, names.get(synsets.leading_wnid(text) or text, -1))
    if found < 0:
        raise ValueError("the name of several classes" if text in names else "not a class name")
    return found
