"""The WordNet synsets over the 1,000 ImageNet classes: from a word or a wnid to class ids.

A synset is one meaning and the words for it; its wnid is "n" and its offset in the database of WordNet 3.0. The synsets
here are those of the classes and all above them, up to "entity". Class ids, 0 to 999, are the ranks of the classes'
wnids, which is the order of every released network. The synsets form a graph, not a tree: 75 of the 1,860 have several
parents, so a class can be reached by several paths. It counts once.

Source: WordNet 3.0, Princeton University; scripts/build_synsets.py makes data/synsets.tsv, its notice lies beside it.
"""

import operator
from dataclasses import dataclass
from functools import cache

LONGEST = 100  # characters of a target
GLOSS_SHOWN = 60  # characters of a gloss in an error message


@dataclass(frozen=True, slots=True)
class Synset:
    """One meaning in WordNet.

    >>> find("dog").words
    ('dog', 'domestic dog', 'Canis familiaris')
    """

    wnid: str  # "n02084071"
    words: tuple[str, ...]  # as WordNet spells them
    name: str  # "dog.n.01": the first word, and which of its noun senses this is
    gloss: str  # the definition
    parents: tuple[str, ...]  # wnids, of the synsets one step more general

    @property
    def class_ids(self) -> list[int]:
        """The classes that this synset is or lies above, sorted, each once."""
        graph = _graph()
        found = set()
        waiting = [self.wnid]
        while waiting:
            wnid = waiting.pop()
            if wnid not in found:
                found.add(wnid)
                waiting += graph.children.get(wnid, ())
        return sorted([graph.ids[wnid] for wnid in found if wnid in graph.ids])


def class_ids(target: str | int) -> list[int]:
    """The ids of all classes under a target, sorted, each once.

    Args:
        target: a wnid, a word, a WordNet name, or a class id as a number or in digits, as for `find`.

    Raises:
        ValueError: the target is unknown, or a word of several meanings.

    >>> class_ids("dog") == class_ids("n02084071") == class_ids("dog.n.01") == list(range(151, 269))
    True
    >>> class_ids("big cat")
    [288, 289, 290, 291, 292, 293]
    """
    return find(target).class_ids


def find(target: str | int) -> Synset:
    """The synset that a target means.

    A word, with blanks or underscores, means its first noun sense in WordNet where that is over the classes, otherwise
    the only sense that is. Capitals do not count: "Cardigan" is the jacket, and the dog is "Cardigan Welsh corgi".

    Args:
        target: a wnid "n02084071", a word "dog", a WordNet name "dog.n.01" (with any word of the synset), or a
            class id, 281 or "281".

    Raises:
        ValueError: the target is unknown, a class id outside 0 to 999, or a word of several meanings, which are
            then listed.
        TypeError: the target is neither a string nor an integer.

    >>> find("domestic_dog").wnid
    'n02084071'
    >>> find(281).name
    'tabby.n.01'
    >>> find("dogs")
    Traceback (most recent call last):
    ValueError: unknown word 'dogs'; close: dog
    """
    if not isinstance(target, str):
        return _of_class_id(target)
    text = " ".join(target.replace("_", " ").lower().split())
    if len(target) > LONGEST:
        raise ValueError(f"the target has {len(target)} characters, more than any word; give a word, a wnid or an id")
    if not text:
        raise ValueError("the target is empty; give a word, a wnid, a WordNet name or a class id")
    if text.removeprefix("-").isdecimal():
        return _of_class_id(int(text))
    if text[0] == "n" and text[1:].isdecimal():
        return _of_wnid(text)
    word, dots, sense = text.rpartition(".n.")
    if dots and sense.isdecimal():
        return _of_name(word, int(sense))
    return _of_word(text)


def wnid(class_id: int) -> str:
    """The wnid of a class, 0 to 999.

    >>> wnid(243)
    'n02108422'
    """
    return _of_class_id(class_id).wnid


def words(class_id: int) -> str:
    """The words for a class, 0 to 999, in one string. They are no key: 134 and 517 are both "crane".

    >>> words(0)
    'tench, Tinca tinca'
    """
    return ", ".join(_of_class_id(class_id).words)


class _Graph:
    """The table in data/synsets.tsv. A `Synset` is made when it is asked for: all of them take longer than the rest."""

    def __init__(self) -> None:
        from pathlib import Path  # here, because it would add a third to the time that importing this module takes

        self.rows: dict[str, list[str]] = {}  # by wnid, sorted: the columns of the table
        self.ids: dict[str, int] = {}  # wnid of a class -> class id; in the order of both
        self.children: dict[str, list[str]] = {}  # wnid -> wnids one step more special
        self.senses: dict[str, dict[int, str]] = {}  # word in lower case, with blanks -> noun sense -> wnid
        table = (Path(__file__).parent / "data" / "synsets.tsv").read_text(encoding="utf-8")
        for line in table.splitlines()[1:]:
            wnid, class_id, parents, words, _ = row = line.split("\t")
            self.rows[wnid] = row
            if class_id:
                self.ids[wnid] = int(class_id)
            for parent in parents.split():
                self.children.setdefault(parent, []).append(wnid)
            for entry in words.lower().split(", "):
                word, sense = entry.split("#")
                self.senses.setdefault(word, {})[int(sense)] = wnid
        self.classes = list(self.ids)  # class id -> wnid


@cache
def _graph() -> _Graph:
    return _Graph()


def _of_wnid(wnid: str) -> Synset:
    rows = _graph().rows
    if wnid not in rows:
        raise ValueError(f"unknown wnid {wnid!r}; {_close(wnid, list(rows), cutoff=0.85)}")
    _, _, parents, words, gloss = rows[wnid]
    pairs = [entry.split("#") for entry in words.split(", ")]
    first, sense = pairs[0]
    name = f"{first.lower().replace(' ', '_')}.n.{sense:0>2}"
    return Synset(wnid, tuple(word for word, _ in pairs), name, gloss, tuple(parents.split()))


def _of_class_id(class_id: int) -> Synset:
    if isinstance(class_id, bool) or not hasattr(class_id, "__index__"):
        raise TypeError(
            f"{class_id!r} is no integer; give a class id, 0 to 999 "
            "(find and class_ids also take a word, a wnid or a WordNet name)"
        )
    number = operator.index(class_id)  # NumPy's integers, and tensors of one, are no int but serve as an index
    classes = _graph().classes
    if not 0 <= number < len(classes):
        raise ValueError(f"class id {number} is outside 0 to {len(classes) - 1}")
    return _of_wnid(classes[number])


def _of_name(word: str, sense: int) -> Synset:
    senses = _senses(word)
    if sense not in senses:
        raise ValueError(f"no ImageNet class is under sense {sense} of {word!r}; known: {_listed(senses)}")
    return _of_wnid(senses[sense])


def _of_word(word: str) -> Synset:
    senses = _senses(word)
    if len(senses) > 1 and 1 not in senses:
        raise ValueError(f"{word!r} has several meanings: {_listed(senses)}; give the wnid")
    return _of_wnid(senses[min(senses)])


def _senses(word: str) -> dict[int, str]:
    known = _graph().senses
    if word not in known:
        raise ValueError(f"unknown word {word!r}; {_close(word, list(known), cutoff=0.75)}")
    return known[word]


def _close(text: str, known: list[str], cutoff: float) -> str:
    from difflib import get_close_matches  # only errors need it

    close = get_close_matches(text, known, n=3, cutoff=cutoff)
    if not close:
        return "no ImageNet class is under anything like it; try a more general word"
    return f"close: {', '.join(close)}"


def _listed(senses: dict[int, str]) -> str:
    return ", or ".join(_described(_of_wnid(wnid)) for _, wnid in sorted(senses.items()))


def _described(synset: Synset) -> str:
    gloss = synset.gloss.partition(";")[0]
    if len(gloss) > GLOSS_SHOWN:
        gloss = gloss[:GLOSS_SHOWN].rpartition(" ")[0] + " ..."
    count = len(synset.class_ids)
    return f"{synset.wnid} {synset.name} ({gloss}: {count} {'class' if count == 1 else 'classes'})"
