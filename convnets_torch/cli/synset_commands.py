"""`synsets`: what a target means, its neighbours in WordNet, and a search for words."""

from __future__ import annotations

import json
import sys
from itertools import groupby
from typing import TYPE_CHECKING

import typer

from convnets_torch.cli.options import Shown, argument, command, option
from convnets_torch.cli.output import show

if TYPE_CHECKING:
    from rich.tree import Tree

    from convnets_torch.wordnet.synsets import Synset

PIPED_WIDTH = 1000  # columns if stdout is not a terminal, so that nothing is cut or wrapped


@command()
def synsets(
    target: str = argument(
        ..., "A word, a wnid, a WordNet name, a class id, or several: 'dog - hunting dog + wolf'.", "TARGET"
    ),
    tree: bool = option(False, "Draw all synsets below the target, down to the classes."),
    search: bool = option(False, "List synsets with TARGET as part of a word: wnid, number of classes, words."),
    *,
    shown: Shown,
) -> None:
    """Print what a target means: its wnid, words, gloss and neighbours in WordNet, and its ImageNet classes."""
    from convnets_torch.wordnet import expressions
    from convnets_torch.wordnet.synsets import find, select
    from convnets_torch.wordnet.synsets import search as search_words

    as_json = shown.as_json
    if tree and (search or as_json):
        raise typer.BadParameter("--tree goes with neither --search nor --json")
    if search:
        found = search_words(target)
        if not found:
            raise ValueError(f"no synset over the ImageNet classes has {target!r} in a word; try a shorter part")
        for synset in found:
            show(json.dumps(_fields(synset)) if as_json else _line(synset))
    elif tree:
        _print_tree(target)
    elif expressions.is_expression(target):
        label, class_ids = select(target)
        _print_fields({"label": label, "classes": len(class_ids), "class_ids": class_ids}, as_json)
    else:
        _print_fields(_fields(find(target)), as_json)


def _fields(synset: Synset) -> dict[str, object]:
    return {
        "wnid": synset.wnid,
        "name": synset.name,
        "words": synset.words,
        "gloss": synset.gloss,
        "depth": synset.depth,
        "parents": synset.parents,
        "children": synset.children,
        "classes": len(synset.class_ids),
        "class_ids": synset.class_ids,
    }


def _line(synset: Synset) -> str:
    return f"{synset.wnid}  {len(synset.class_ids):>4}  {synset.label}"


def _print_fields(fields: dict[str, object], as_json: bool) -> None:
    from convnets_torch.wordnet.synsets import find

    if as_json:
        print(json.dumps(fields))
        return
    for key, value in fields.items():
        match key, value:
            case "class_ids", list():
                shown = _ranges(value)
            case "parents" | "children", tuple():
                shown = ", ".join(f"{wnid} {find(wnid).words[0]}" for wnid in value) or "-"
            case _, tuple():
                shown = ", ".join(value)
            case _:
                shown = str(value)
        show(f"{key.replace('_', ' '):<9}  {shown}")


def _ranges(numbers: list[int]) -> str:
    """Format sorted numbers as ranges: [1, 2, 3, 7] becomes "1-3, 7"."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _print_tree(target: str) -> None:
    """Draw the tree from a target to its classes; an expression starts at the common ancestor of its classes."""
    from rich.console import Console
    from rich.tree import Tree

    from convnets_torch.wordnet import expressions
    from convnets_torch.wordnet.synsets import class_ids, common_ancestor, find

    wanted = frozenset(class_ids(target))
    top = common_ancestor(*wanted) if expressions.is_expression(target) else find(target)
    tree = Tree("", hide_root=True)
    _grow(tree, top, wanted, set())
    terminal = sys.stdout.isatty()
    Console(force_terminal=terminal, width=None if terminal else PIPED_WIDTH, highlight=False).print(tree)


def _grow(branch: Tree, synset: Synset, wanted: frozenset[int], shown: set[str]) -> None:
    """Add a synset and its descendants; one with several parents is under each, but expanded only the first time."""
    from rich.text import Text

    from convnets_torch.wordnet.synsets import find

    below = wanted.intersection(synset.class_ids)
    if not below:
        return
    count = f"{len(below)} {'class' if len(below) == 1 else 'classes'}" if synset.children else f"class {min(below)}"
    if synset.wnid in shown:
        count += ", shown above"
    grown = branch.add(Text.assemble(synset.label, (f"  {synset.wnid}  {count}", "dim")))
    if synset.wnid not in shown:
        shown.add(synset.wnid)
        for child in synset.children:
            _grow(grown, find(child), wanted, shown)
