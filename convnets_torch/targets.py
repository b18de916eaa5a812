"""What a target means for a network: a set of its classes, with words for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from convnets_torch import algebra, synsets
from convnets_torch.card import Card

Targets: TypeAlias = "list[str | int] | list[str] | list[int] | tuple[str | int, ...]"


@dataclass(frozen=True)
class Target:
    """A set of classes to look for.

    Attributes:
        label: words for people, for instance "car, auto, automobile", or "dog - hunting dog".
        wnid: the WordNet synset; None for several of them with signs, and for a user's own classes.
        class_ids: sorted and distinct.
    """

    label: str
    wnid: str | None
    class_ids: tuple[int, ...]


def find_target(card: Card, target: str | int) -> Target:
    """The classes that `target` means for weights with this card.

    Args:
        card: of the weights; it says whose classes they are.
        target: a class id; with ImageNet's classes also a wnid ("n02084071"), a word ("dog") or a WordNet name
            ("dog.n.01"), each of which means its whole branch of the tree; with a user's own, a class name, before an
            id where a class is called by a number ("7"). Or
            several of these with signs between blanks, from left to right: "dog - hunting dog + wolf" (`algebra`).

    Raises:
        ValueError: the target is none of the network's classes, or the word is ambiguous; or no class is left.
    """
    if card.imagenet and isinstance(target, str) and algebra.is_expression(target):
        label, class_ids = synsets.select(target)
        return Target(label, None, tuple(class_ids))
    if card.imagenet:
        synset = synsets.find(target)
        return Target(synset.label, synset.wnid, tuple(synset.class_ids))
    names = [class_name(card, class_id) for class_id in range(card.classes)]
    if isinstance(target, str) and target not in names and algebra.is_expression(target):
        label, class_ids = algebra.evaluate(target, lambda operand: _own_class(names, operand))
    else:
        label, class_ids = _own_class(names, target)
    return Target(label, None, tuple(class_ids))


def _own_class(names: list[str], target: str | int) -> tuple[str, list[int]]:
    """The name and the id of a user's own class, given by either."""
    if target not in names and str(target).isdecimal() and int(target) < len(names):
        return names[int(target)], [int(target)]
    wnid = synsets.leading_wnid(target) if isinstance(target, str) else None
    if target not in names and wnid is not None:  # "n02123159 tiger cat" and "n02123159" are one class
        alike = [name for name in names if synsets.leading_wnid(name) == wnid]
        target = alike[0] if len(alike) == 1 else target
    if target not in names:
        known = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        raise ValueError(f"{target!r} is none of the {len(names)} classes ({known}); give a name or an id")
    return str(target), [names.index(str(target))]


def class_name(card: Card, class_id: int) -> str:
    """Words for one class: all of its synset's for ImageNet, the user's own name, or "class 17"."""
    if card.imagenet:
        return synsets.words(class_id)
    return f"class {class_id}" if card.class_names is None else card.class_names[class_id]


def class_wnid(card: Card, class_id: int) -> str | None:
    """The wnid of an ImageNet class, or the one that the name of a user's own class begins with; else None."""
    return synsets.wnid(class_id) if card.imagenet else synsets.leading_wnid(class_name(card, class_id))


def checked_target(card: Card, target: str | int) -> Target:
    """`find_target`, where the probabilities of its classes may be added up.

    Raises:
        ValueError: the target is not known, or is several classes of a network with sigmoids.
    """
    found = find_target(card, target)
    if card.activation == "sigmoid" and len(found.class_ids) > 1:
        raise ValueError(
            f"{found.label} is {len(found.class_ids)} classes, whose sigmoids do not add up; name one class"
        )
    return found


def checked_targets(card: Card, target: str | int | Targets) -> list[Target]:
    """`checked_target` of each of a list; a single target is a list of one.

    Raises:
        ValueError: as `checked_target`; or the list is empty.
    """
    targets = [checked_target(card, each) for each in (target if isinstance(target, list | tuple) else [target])]
    if not targets:
        raise ValueError("the list of targets is empty; name what to look for")
    return targets


def allowed_classes(card: Card, only: str | int | None) -> list[int]:
    """The classes of a target, or all of them.

    Raises:
        ValueError: the target is not known.
    """
    return list(range(card.classes)) if only is None else list(find_target(card, only).class_ids)


def winners_in_words(card: Card, class_ids: Iterable[int]) -> dict[int, str]:
    """Class id -> words, the class that comes most often first."""
    return {class_id: class_name(card, class_id) for class_id, _ in Counter(class_ids).most_common()}
