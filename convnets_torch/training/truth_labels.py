"""From what people write for a class to class ids: wnids, words, names of their own, and numbers, which need care.

ILSVRC numbers its classes from 1 to 1000 in an order of its own; networks number them from 0 to 999 in the order of
wnids. A file of numbers does not say which it has, and the wrong guess is wrong for nearly every picture.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from convnets_torch import synsets
from convnets_torch.card import Card
from convnets_torch.folders import normal
from convnets_torch.labelled import read_lines
from convnets_torch.targets import class_keys, class_name

Labels = Literal["auto", "class-ids"]
SHOWN = 10  # of the labels that are refused, with the reason for each
MOST_PROBLEMS = 100  # labels that are looked up in vain, each of which takes milliseconds


def resolved_labels(
    card: Card, texts: Iterable[str], where: str, *, labels: Labels = "auto", table: dict[int, str] | None = None
) -> tuple[dict[str, int], list[str]]:
    """The class that each different text means, strictly: one, or all that mean none are refused at once.

    Args:
        card: of the network whose classes they are.
        texts: wnids or words that mean exactly one class (ImageNet's 1,000), the card's own class names, or class ids.
        where: what they were read from, for the sentence.
        labels: "class-ids" takes numbers for class ids, 0 to classes - 1, where "auto" refuses them: where they may
            just as well count from 1.
        table: ILSVRC's ids -> wnids; then every text is such an id.

    Returns:
        text -> class id, and remarks.

    Raises:
        ValueError: texts that mean no class, or numbers that nobody has said the meaning of.
    """
    if labels not in get_args(Labels):
        raise ValueError(f"unknown labels {labels!r}; known: {', '.join(get_args(Labels))}")
    distinct = list(dict.fromkeys(texts))
    names = {} if card.imagenet else {normal(key): place for key, place in class_keys(card).items()}
    numbers = [int(text) for text in distinct if _is_number(text)]
    remarks = []
    problems: dict[str, str] = {}
    if table is not None:
        if labels == "class-ids":
            raise ValueError("class ids need no table of ILSVRC's ids; leave out one of the two")
        if not card.imagenet:
            raise ValueError("a table of ILSVRC's ids gives wnids, but the network's classes are not ImageNet's")
        mean = partial(_of_table, table=table, problems=problems)
    elif labels == "class-ids" or (len(numbers) == len(distinct) and not any(text in names for text in distinct)):
        if labels == "auto":
            _check_zero_based(card, numbers, where)
            _check_numbered_names(card, where)
            remarks.append(f"{where}: the labels are taken for class ids, 0 ({class_name(card, 0)}) and up")
        mean = partial(_of_number, card=card, problems=problems)
    elif card.imagenet:
        mean = partial(_of_words, problems=problems)
    else:
        mean = partial(_of_name, names=names, problems=problems)
    found: dict[str, int] = {}
    for text in distinct:
        found[text] = mean(text)
        if len(problems) == MOST_PROBLEMS:
            break
    if problems:
        shown = "; ".join(f"{text!r:.80} {reason}" for text, reason in list(problems.items())[:SHOWN])
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ValueError(
            f"{where}: {len(problems)} of {len(found)} labels are none of the network's {card.classes} classes:"
            f" {shown}{more}"
        )
    return found, remarks


def read_id_table(path: Path) -> dict[int, str]:
    """ILSVRC's ids -> wnids, from lines "id wnid" or "wnid id", with blanks or commas between; what follows is left.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is no such pair, or an id has two wnids.
    """
    found: dict[int, str] = {}
    for number, line in ((number, text.strip()) for number, text in read_lines(path)):
        if not line:
            continue
        pair = line.replace(",", " ").split()[:2]
        ids, wnids = [text for text in pair if _is_number(text)], [text for text in pair if _is_wnid(text)]
        if len(ids) != 1 or len(wnids) != 1:
            raise ValueError(f"{path}, line {number} is {line!r:.80}; an id and a wnid are wanted, '1 n02119789'")
        before = found.setdefault(int(ids[0]), wnids[0])
        if before != wnids[0]:
            raise ValueError(f"{path}, line {number}: the id {ids[0]} is {before} before and {wnids[0]} here")
    if not found:
        raise ValueError(f"{path} is empty; a line 'id wnid' for each class is wanted")
    return found


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _is_wnid(text: str) -> bool:
    return text[:1] == "n" and len(text) == 9 and text[1:].isascii() and text[1:].isdigit()


def _check_zero_based(card: Card, numbers: list[int], where: str) -> None:
    """Numbers with a 0 and none beyond the last class count from 0; what else they mean is not ours to guess."""
    first, last = min(numbers), max(numbers)
    if first == 0 and last < card.classes:
        return
    spoken = f"{where}: the labels are numbers from {first} to {last}"
    if not card.imagenet:
        raise ValueError(
            f"{spoken}, but class ids go from 0 to {card.classes - 1}, and without a 0 they may count from 1; write the"
            " names of classes, or say that they are class ids: --labels class-ids, labels='class-ids' in Python"
        )
    raise ValueError(
        f"{spoken}, and without a 0, or with a 1000, they may be ILSVRC's ids, whose order is another one; give the"
        " table of ILSVRC's ids and wnids (--id-table, id_table in Python), or say that they are class ids, 0 to 999 in"
        " the order of wnids (--labels class-ids, labels='class-ids' in Python)"
    )


def _check_numbered_names(card: Card, where: str) -> None:
    """Names such as `class_2` and `class_10`, sorted as text, have another order than their numbers."""
    if card.class_names is None or card.imagenet:
        return
    found = [re.fullmatch(r"(.*?)0*(\d+)", name, re.ASCII) for name in card.class_names]
    if None in found or len({each[1] for each in found if each}) > 1:
        return
    for place, (name, each) in enumerate(zip(card.class_names, found, strict=True)):
        if each and each[2] != str(place):
            raise ValueError(
                f"{where}: the labels are numbers, but the number {each[2]} may be the class {name} or class id"
                f" {each[2]}, while {name} is class id {place}; write the names of classes, or say that they are class"
                " ids: --labels class-ids, labels='class-ids' in Python"
            )


def _of_number(text: str, card: Card, problems: dict[str, str]) -> int:
    if not _is_number(text) or int(text) >= card.classes:
        problems[text] = f"(no class id from 0 to {card.classes - 1})"
        return -1
    return int(text)


def _of_table(text: str, table: dict[int, str], problems: dict[str, str]) -> int:
    if not _is_number(text) or int(text) not in table:
        problems[text] = "(not in the table of ILSVRC's ids)"
        return -1
    before = len(problems)
    found = _of_words(table[int(text)], problems)
    if len(problems) > before:
        problems[text] = f"({table[int(text)]} in the table) {problems.pop(table[int(text)])}"
    return found


def _of_words(text: str, problems: dict[str, str]) -> int:
    if _is_number(text):
        problems[text] = "(a number among words)"
        return -1
    try:
        return synsets.class_id(text)
    except ValueError as error:
        problems[text] = f"({str(error).split(';')[0]})"
        return -1


def _of_name(text: str, names: dict[str, int], problems: dict[str, str]) -> int:
    found = names.get(text, names.get(synsets.leading_wnid(text) or text, -1))
    if found < 0:
        problems[text] = "(the name of several classes)" if text in names else "(no class's name)"
    return found
