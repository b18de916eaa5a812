"""A second derivation of the synsets over the ImageNet classes: top-down, from "entity" through the hyponym pointers.

scripts/build_synsets.py goes the other way, from the classes up through the hypernym pointers, and reads the database
line by line; here a wnid is what WordNet means by it, a place in data.noun to read at. This writes class_sets.tsv:

    python -m tests.reference.wordnet

NLTK 3.6.2, asked once over the same database, gave the same names, words, sets of parents and sets of classes, and the
same glosses but one: for cattle it keeps a piece of an example, "- Bible".
"""

import os
import re
from functools import cache
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ROOT / "scripts" / "imagenet_1k_wnids.txt"
CLASS_SETS = ROOT / "tests" / "data" / "wordnet" / "class_sets.tsv"
DATABASE = Path(os.environ.get("WORDNET_DICT", "/usr/share/wordnet"))
ENTITY = 1740  # where data.noun has the synset above all others


def class_sets(database: Path) -> str:
    """All synsets with a class at or under them: lines of wnid, name and class ids such as "151-268,275"."""
    ids = {int(wnid[1:]): class_id for class_id, wnid in enumerate(CLASSES.read_text(encoding="ascii").split())}
    index = dict(line.split(" ", 1) for line in (database / "index.noun").read_text(encoding="ascii").splitlines())
    lines: dict[int, str] = {}

    with (database / "data.noun").open("rb") as data:

        @cache
        def under(offset: int) -> frozenset[int]:
            data.seek(offset)
            pointers = data.readline().decode("ascii").split("|")[0]
            found = {ids[offset]} if offset in ids else set()
            for hyponym in re.findall(r" ~ (\d{8}) n 0000", pointers):
                found |= under(int(hyponym))
            if found:
                lines[offset] = f"n{offset:08}\t{name(offset, pointers, index)}\t{ranges(sorted(found))}\n"
            return frozenset(found)

        under(ENTITY)
    return "".join(line for _, line in sorted(lines.items()))


def name(offset: int, pointers: str, index: dict[str, str]) -> str:
    """The first word of a synset and the place of the synset in the word's line of index.noun: "dog.n.01"."""
    word = pointers.split()[4].lower()
    senses = re.findall(r"\b\d{8}\b", index[word])
    return f"{word}.n.{senses.index(f'{offset:08}') + 1:02}"


def ranges(numbers: list[int]) -> str:
    """Sorted numbers in short: [1, 2, 3, 7] is "1-3,7"."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def expand(text: str) -> list[int]:
    """The inverse of `ranges`."""
    runs = [run.split("-") for run in text.split(",")]
    return [number for run in runs for number in range(int(run[0]), int(run[-1]) + 1)]


if __name__ == "__main__":
    CLASS_SETS.write_bytes(class_sets(DATABASE).encode())
