"""Classes in the order of the synset tree, so that what is alike stands side by side."""

from __future__ import annotations

from functools import lru_cache

from convnets_torch import synsets

MOST, LEAST = 130, 12  # classes of a group that gets a name


@lru_cache(4)
def tree_order(classes: tuple[str, ...]) -> tuple[tuple[int, ...], tuple[tuple[int, int, str], ...]]:
    """All class ids, and (first, end, words) of groups of neighbours among them.

    Args:
        classes: their wnids, as `tree_wnids` gives them.

    Every synset of several parents stands under the deepest one, of equally deep ones the one with the smallest wnid,
    so that each has one place and everything under a synset is together. A group is the highest synset of a branch
    with no more than 130 classes; those with fewer than 12 have no name.

    >>> order, groups = tree_order(synsets.wnids())
    >>> len(set(order)), [words for _, _, words in groups][:4]
    (1000, ['aquatic vertebrate', 'bird', 'reptile', 'canine'])
    """
    depths: dict[str, int] = {}

    def depth(wnid: str) -> int:
        if wnid not in depths:
            depths[wnid] = synsets.find(wnid).depth
        return depths[wnid]

    ids: dict[str, list[int]] = {}
    for class_id, wnid in enumerate(classes):
        ids.setdefault(wnid, []).append(class_id)
    below: dict[str, list[str]] = {}
    waiting, seen = [synsets.ENTITY], {synsets.ENTITY}
    while waiting:
        for child in synsets.find(waiting.pop()).children:
            if child not in seen:
                seen.add(child)
                waiting.append(child)
                parent = min(synsets.find(child).parents, key=lambda wnid: (-depth(wnid), wnid))
                below.setdefault(parent, []).append(child)
    order: list[int] = []
    groups: list[tuple[int, int, str]] = []

    def visit(wnid: str) -> None:
        first, place = len(order), len(groups)
        for child in sorted(below.get(wnid, ())):
            visit(child)
        order.extend(ids.get(wnid, ()))
        size = len(order) - first
        if LEAST <= size <= MOST:
            groups[place:] = [(first, len(order), synsets.find(wnid).words[0])]

    visit(synsets.ENTITY)
    return tuple(order), tuple(groups)
