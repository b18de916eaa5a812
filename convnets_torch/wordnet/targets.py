"""Resolve targets, such as words, wnids and class ids, to classes of a network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeAlias

from convnets_torch.card import Card
from convnets_torch.wordnet import expressions, synsets

Targets: TypeAlias = "list[str | int] | list[str] | list[int] | tuple[str | int, ...]"


@dataclass(frozen=True)
class Target:
    """A set of classes to look for.

    Attributes:
        label: readable name, for instance "car, auto, automobile", or "dog - hunting dog".
        wnid: the WordNet synset; None for an expression of several, and for a user's own class without a wnid.
        class_ids: sorted, without duplicates.
    """

    label: str
    wnid: str | None
    class_ids: tuple[int, ...]


def find_target(card: Card, target: str | int) -> Target:
    """Return the classes that `target` means for weights with this card.

    Args:
        card: of the weights; it defines the classes.
        target: a class id; or, for classes with wnids, ImageNet's or a user's own, a wnid ("n02084071"), a word ("dog")
            or a WordNet name ("dog.n.01"), each of which means all classes below it. The exact name of a user's own
            class takes precedence, even if it is a number ("7"). Or several of these with signs between blanks,
            evaluated from left to right: "dog - hunting dog + wolf" (see `expressions`).

    Raises:
        ValueError: the target is not one of the network's classes, the word is ambiguous, or no class is left.
    """
    labels = [] if card.imagenet else [class_label(card, class_id) for class_id in range(card.classes)]
    if target in labels or not expressions.is_expression(target):
        return _single(card, labels, target)

    def meaning(operand: str) -> tuple[str, tuple[int, ...]]:
        found = _single(card, labels, operand)
        return found.label if found.wnid is None else found.label.partition(",")[0], found.class_ids

    words, class_ids = expressions.evaluate(str(target), meaning)
    return Target(words, None, tuple(class_ids))


def _single(card: Card, labels: list[str], target: str | int) -> Target:
    """Resolve a target without signs."""
    if target in labels:
        place = labels.index(str(target))
        return Target(class_name(card, place), class_wnid(card, place), (place,))
    if card.imagenet:
        return _branch(card, synsets.find(target))
    known = ", ".join(labels[:10]) + (", ..." if len(labels) > 10 else "")
    sentence = f"{target!r} is not one of the {len(labels)} classes ({known})"
    if str(target).isdecimal():
        if int(target) < len(labels):
            return Target(class_name(card, int(target)), class_wnid(card, int(target)), (int(target),))
    elif any(wnids := class_wnids(card)):
        try:
            found = _branch(card, synsets.find(target))
            sentence += f", and none of them is under {found.label}"
        except ValueError as error:
            found = Target(str(target), None, ())
            sentence += f", and no synset above them: {error}"
        # synsets outside ImageNet's tree: only the class's own wnid and words are known
        own = [place for place, wnid in enumerate(wnids) if target in (wnid, class_name(card, place))]
        if class_ids := found.class_ids or tuple(own):
            return replace(found, class_ids=class_ids)
    raise ValueError(f"{sentence}; give a name or an id")


def _branch(card: Card, synset: synsets.Synset) -> Target:
    """Return the card's classes at or below a synset."""
    wnids = enumerate(class_wnids(card))
    below = [place for place, wnid in wnids if wnid and synsets.is_known(wnid) and synset.wnid in synsets.lineage(wnid)]
    return Target(synset.label, synset.wnid, tuple(below))


def class_label(card: Card, class_id: int) -> str:
    """Return a class's exact name in the card, or "class 17" if it has none; for ImageNet, all words of the synset."""
    if card.imagenet:
        return synsets.words(class_id)
    return f"class {class_id}" if card.class_names is None else card.class_names[class_id]


def class_name(card: Card, class_id: int) -> str:
    """Return the readable name of a class: as `class_label`, but without a wnid at the start of a user's own name.

    A user's own name that is only a wnid becomes the words of its synset: "tiger cat" for "n02123159" and for
    "n02123159 tiger cat".
    """
    label = class_label(card, class_id)
    if (wnid := class_wnid(card, class_id)) is None or card.imagenet:
        return label
    words = label.removeprefix(wnid).strip(" \t_-,:;")
    return words or (synsets.find(wnid).label if synsets.is_known(wnid) else label)


def class_wnid(card: Card, class_id: int) -> str | None:
    """Return the wnid of an ImageNet class, or the one at the start of a user's own class name, or None."""
    if card.imagenet:
        return synsets.wnid(class_id)
    return None if card.class_names is None else synsets.leading_wnid(card.class_names[class_id])


def class_wnids(card: Card) -> tuple[str | None, ...]:
    """Return `class_wnid` of every class."""
    return synsets.wnids() if card.imagenet else tuple(class_wnid(card, each) for each in range(card.classes))


def tree_wnids(card: Card) -> tuple[str, ...] | None:
    """Return the wnid of every class, or None unless all are in the WordNet tree above ImageNet's classes."""
    wnids = class_wnids(card)
    known = tuple(wnid for wnid in wnids if wnid is not None and synsets.is_known(wnid))
    return known if 0 < len(known) == len(wnids) else None


def class_keys(card: Card) -> dict[str, int]:
    """Map names, wnids and words of the user's own classes to class ids; -1 marks an ambiguous key."""
    found: dict[str, int] = {}
    every = range(card.classes)
    for keys in ([class_label(card, each) for each in every], class_wnids(card), [class_name(card, n) for n in every]):
        counts = Counter(keys)
        for place, key in enumerate(keys):
            if key is not None:
                found.setdefault(key, place if counts[key] == 1 else -1)
    return found


def checked_target(card: Card, target: str | int) -> Target:
    """Return `find_target` after checking that the probabilities of its classes may be summed.

    Raises:
        ValueError: the target is unknown, or means several classes of a network with sigmoid outputs.
    """
    found = find_target(card, target)
    if card.activation == "sigmoid" and len(found.class_ids) > 1:
        raise ValueError(
            f"{found.label} is {len(found.class_ids)} classes, whose sigmoids do not add up; name one class"
        )
    return found


def checked_targets(card: Card, target: str | int | Targets) -> list[Target]:
    """Return `checked_target` of each target, one or several; ValueError also for an empty list."""
    targets = [checked_target(card, each) for each in (target if isinstance(target, list | tuple) else [target])]
    if not targets:
        raise ValueError("the list of targets is empty; name what to look for")
    return targets


def allowed_classes(card: Card, only: str | int | None) -> list[int]:
    """Return the class ids of a target, or all if `only` is None; ValueError if it is unknown."""
    return list(range(card.classes)) if only is None else list(find_target(card, only).class_ids)


def winners_in_words(card: Card, class_ids: Iterable[int]) -> dict[int, str]:
    """Map class ids to names, most frequent first."""
    return {class_id: class_name(card, class_id) for class_id, _ in Counter(class_ids).most_common()}
