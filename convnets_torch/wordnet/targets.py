"""What a target means for a network: a set of its classes, with words for people."""

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
        label: words for people, for instance "car, auto, automobile", or "dog - hunting dog".
        wnid: the WordNet synset; None for several of them with signs, and for a class of the user's own without one.
        class_ids: sorted and distinct.
    """

    label: str
    wnid: str | None
    class_ids: tuple[int, ...]


def find_target(card: Card, target: str | int) -> Target:
    """The classes that `target` means for weights with this card.

    Args:
        card: of the weights; it says whose classes they are.
        target: for classes with wnids, ImageNet's or a user's own, a wnid ("n02084071"), a word ("dog") or a WordNet
            name ("dog.n.01"), each of which means its whole branch of the tree; a class id; and before all of these,
            the name of a user's own class, letter by letter, even where it is a number ("7"). Or several of these with
            signs between blanks, from left to right: "dog - hunting dog + wolf" (`algebra`).

    Raises:
        ValueError: the target is none of the network's classes, or the word is ambiguous; or no class is left.
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
    """A target without signs."""
    if target in labels:
        place = labels.index(str(target))
        return Target(class_name(card, place), class_wnid(card, place), (place,))
    if card.imagenet:
        return _branch(card, synsets.find(target))
    known = ", ".join(labels[:10]) + (", ..." if len(labels) > 10 else "")
    sentence = f"{target!r} is none of the {len(labels)} classes ({known})"
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
        # of a synset that is not above ImageNet's classes, the class's own wnid and words are all there is
        own = [place for place, wnid in enumerate(wnids) if target in (wnid, class_name(card, place))]
        if class_ids := found.class_ids or tuple(own):
            return replace(found, class_ids=class_ids)
    raise ValueError(f"{sentence}; give a name or an id")


def _branch(card: Card, synset: synsets.Synset) -> Target:
    """The classes that a synset is or lies above."""
    wnids = enumerate(class_wnids(card))
    below = [place for place, wnid in wnids if wnid and synsets.is_known(wnid) and synset.wnid in synsets.lineage(wnid)]
    return Target(synset.label, synset.wnid, tuple(below))


def class_label(card: Card, class_id: int) -> str:
    """The name that the card has for one class, letter by letter; for ImageNet's, all words of the synset."""
    if card.imagenet:
        return synsets.words(class_id)
    return f"class {class_id}" if card.class_names is None else card.class_names[class_id]


def class_name(card: Card, class_id: int) -> str:
    """Words for one class: all of its synset's for ImageNet, the user's own name, or "class 17".

    Of a user's own name that begins with a wnid they are the words behind it, or where it is a wnid alone, those of its
    synset: "tiger cat" for "n02123159" and for "n02123159 tiger cat".
    """
    label = class_label(card, class_id)
    if (wnid := class_wnid(card, class_id)) is None or card.imagenet:
        return label
    words = label.removeprefix(wnid).strip(" \t_-,:;")
    return words or (synsets.find(wnid).label if synsets.is_known(wnid) else label)


def class_wnid(card: Card, class_id: int) -> str | None:
    """The wnid of an ImageNet class, or that a user's own class's name begins with; None where there is none."""
    if card.imagenet:
        return synsets.wnid(class_id)
    return None if card.class_names is None else synsets.leading_wnid(card.class_names[class_id])


def class_wnids(card: Card) -> tuple[str | None, ...]:
    """`class_wnid` of each class."""
    return synsets.wnids() if card.imagenet else tuple(class_wnid(card, each) for each in range(card.classes))


def tree_wnids(card: Card) -> tuple[str, ...] | None:
    """The wnid of each class, where all of them stand in the WordNet tree over ImageNet's classes; else None."""
    wnids = class_wnids(card)
    known = tuple(wnid for wnid in wnids if wnid is not None and synsets.is_known(wnid))
    return known if 0 < len(known) == len(wnids) else None


def class_keys(card: Card) -> dict[str, int]:
    """What a class of the user's own may be called -> its id: its name, its wnid, its words; -1 where several may."""
    found: dict[str, int] = {}
    every = range(card.classes)
    for keys in ([class_label(card, each) for each in every], class_wnids(card), [class_name(card, n) for n in every]):
        counts = Counter(keys)
        for place, key in enumerate(keys):
            if key is not None:
                found.setdefault(key, place if counts[key] == 1 else -1)
    return found


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
