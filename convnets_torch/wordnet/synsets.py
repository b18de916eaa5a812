"""The WordNet synsets over the 1,000 ImageNet classes: from a word or a wnid to class ids.

A synset is one meaning and the words for it; its wnid is "n" and its offset in the database of WordNet 3.0. The synsets
here are those of the classes and all above them, up to "entity". Class ids, 0 to 999, are the ranks of the classes'
wnids, which is the order of every released network. The synsets form a graph, not a tree: 75 of the 1,860 have several
parents, so a class can be reached by several paths. It counts once.

A synset has its parents, children, ancestors and paths as wnids; `find` turns a wnid into a synset.

Source: WordNet 3.0, Princeton University; scripts/build_synsets.py makes data/synsets.tsv, its notice lies beside it.
"""

import operator
from functools import cache
from typing import NamedTuple

from convnets_torch.wordnet import expressions

LONGEST = 200  # characters of a target; the words of dragonfly have 121
ENTITY = "n00001740"  # the synset above all others
_TABLE = __file__.removesuffix("synsets.py") + "data/synsets.tsv"
GLOSS_SHOWN = 60  # characters of a gloss in an error message


class Synset(NamedTuple):  # no dataclass: importing those takes longer than all the rest
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
    def label(self) -> str:
        """All words in one string.

        >>> find(0).label
        'tench, Tinca tinca'
        """
        return ", ".join(self.words)

    @property
    def class_ids(self) -> list[int]:
        """The classes that this synset is or lies above, sorted, each once."""
        return sorted(_graph().under[self.wnid])

    @property
    def children(self) -> tuple[str, ...]:
        """Wnids of the synsets one step more special that are, or lie above, a class; sorted.

        >>> [find(wnid).name for wnid in find("domestic cat").children]
        ['tabby.n.01', 'tiger_cat.n.02', 'persian_cat.n.01', 'siamese_cat.n.01', 'egyptian_cat.n.01']
        """
        return tuple(_graph().children.get(self.wnid, ()))

    @property
    def paths(self) -> list[tuple[str, ...]]:
        """Every way down from "entity" to this synset: its wnids, both ends included; sorted by length, then wnids.

        >>> [len(path) for path in find("dog").paths]
        [9, 14]
        """
        if not self.parents:
            return [(self.wnid,)]
        found = [(*path, self.wnid) for parent in self.parents for path in _of_wnid(parent).paths]
        return sorted(found, key=lambda path: (len(path), path))

    @property
    def depth(self) -> int:
        """Steps down from "entity", by the longest path.

        The longest, because it grows with each step down whichever parent that leaves; the shortest does not: "dog" is
        8 steps down by way of "domestic animal", and its other parent, "canine", 12.

        >>> find("dog").depth, find("entity").depth
        (13, 0)
        """
        return len(self.paths[-1]) - 1

    @property
    def ancestors(self) -> tuple[str, ...]:
        """Wnids of all synsets above this one, each once; sorted by depth, the deepest first, then by wnid.

        >>> [find(wnid).words[0] for wnid in find("dog").ancestors[:4]]
        ['canine', 'carnivore', 'placental', 'mammal']
        """
        above = {wnid for path in self.paths for wnid in path[:-1]}
        return tuple(sorted(above, key=lambda wnid: (-_of_wnid(wnid).depth, wnid)))


def class_ids(target: str | int) -> list[int]:
    """The ids of all classes under a target, sorted, each once.

    Args:
        target: a wnid, words, a WordNet name, or a class id as a number or in digits, as for `find`; or several of
            them with signs between blanks: + (these too), - (without these), & (only those that are also these),
            taken from left to right.

    Raises:
        ValueError: a target is unknown, or a word of several meanings; or of several with signs no class is left,
            or a sign has nothing on one side. The place is then marked by >>>.

    >>> class_ids("dog") == class_ids("n02084071") == class_ids("dog.n.01") == list(range(151, 269))
    True
    >>> class_ids("big cat")
    [288, 289, 290, 291, 292, 293]
    >>> class_ids("big cat - lion + 281")
    [281, 288, 289, 290, 292, 293]
    >>> class_ids("dog - - lion")
    Traceback (most recent call last):
    ValueError: a target is missing at >>> in 'dog - >>>- lion'; a sign stands between two targets
    """
    return (
        select(target)[1] if isinstance(target, str) and expressions.is_expression(target) else find(target).class_ids
    )


def select(expression: str) -> tuple[str, list[int]]:
    """What several targets with signs between them mean: the first word of each, and the class ids.

    Raises:
        ValueError: as for `class_ids`.

    >>> select("plane - n04552348")
    ('airplane - warplane', [404])
    """
    return expressions.evaluate(expression, _meaning)


def class_id(target: str | int) -> int:
    """The id of the one class that a target is: the inverse of `wnid` and, where they are a key, of `words`.

    Args:
        target: a wnid, a WordNet name, a class id as a number or in digits, all words of the class
            "tench, Tinca tinca", or one of them, "tench".

    Raises:
        ValueError: the target is unknown, no class, or a word of several classes, which are then listed; or a
            class's word that means another synset to `find`.

    >>> class_id("n02108422"), class_id("bull mastiff"), class_id("tench, Tinca tinca")
    (243, 243, 0)
    >>> class_id("crane.n.05"), class_id("maillot, tank suit")
    (134, 639)
    >>> class_id("maillot")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: 'maillot' has several meanings: n03710721 maillot.n.01 (...), or n03710637 maillot.n.02 (...); ...
    """
    ids = _graph().ids
    text = _normalized(target) if isinstance(target, str) else ""
    senses = _graph().senses.get(text, {})
    classes = {sense: wnid for sense, wnid in senses.items() if wnid in ids}
    if len(classes) > 1 or (classes and 1 in senses and 1 not in classes):
        raise ValueError(_several_meanings(text, classes if len(classes) > 1 else senses))
    synset = _of_wnid(*classes.values()) if classes else find(target)
    if synset.wnid not in ids:
        below = [find(number) for number in synset.class_ids[:3]]
        shown = ", ".join(f"{entry.wnid} {entry.name}" for entry in below)
        raise ValueError(f"{_described(synset)} is no class; give one under it, such as {shown}")
    return ids[synset.wnid]


def find(target: str | int) -> Synset:
    """The synset that a target means.

    A word, with blanks or underscores, means its first noun sense in WordNet where that is over the classes, otherwise
    the only sense that is. Capitals do not count: "Cardigan" is the jacket, and the dog is "Cardigan Welsh corgi".

    Args:
        target: a wnid "n02084071", alone or before words, a word "dog", all words of a synset "dog, domestic dog,
            Canis familiaris", a WordNet name "dog.n.01" (with any word of the synset), or a class id, 281 or "281".

    Raises:
        ValueError: the target is unknown, a class id outside 0 to 999, a word of several meanings, which are then
            listed, or several targets with signs between them, which only `class_ids` takes.
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
    if expressions.is_expression(target):
        raise ValueError(f"{target[:LONGEST]!r} is several targets with signs; a single one is wanted here")
    if len(target) > LONGEST:
        raise ValueError(f"the target has {len(target)} characters, more than any word; give a word, a wnid or an id")
    text = _normalized(target)
    if not text:
        raise ValueError("the target is empty; give a word, a wnid, a WordNet name or a class id")
    if text.removeprefix("-").isdecimal():
        return _of_class_id(int(text))
    if text[0] == "n" and text[1:].isdecimal():
        return _of_wnid(text)
    if leading := leading_wnid(text):
        return _of_wnid(leading)
    word, dots, sense = text.rpartition(".n.")
    if dots and sense.isdecimal():
        return _of_name(word, int(sense))
    if "," in text:
        return _of_label(text)
    return _of_word(text)


def leading_wnid(text: str) -> str | None:
    """The wnid that a label begins with, or None: lines of ILSVRC's files have the words after it.

    >>> leading_wnid("n02123159 tiger cat"), leading_wnid("n02123159-tiger_cat"), leading_wnid("n02123159")
    ('n02123159', 'n02123159', 'n02123159')
    >>> leading_wnid("tiger cat n02123159"), leading_wnid("n021231590")
    (None, None)
    """
    wnid, after = text[:9], text[9:10]
    is_wnid = wnid[:1] == "n" and len(wnid) == 9 and wnid[1:].isascii() and wnid[1:].isdecimal()
    return wnid if is_wnid and not after.isalnum() else None


def search(text: str) -> list[Synset]:
    """The synsets with a word that contains a text, in capitals or not.

    Returns:
        Those with exactly this word first, then those where a part of a word of several begins with it ("dog sled"),
        then the rest ("bulldog"); within each the synsets over most classes first, then by wnid. Often none.

    Raises:
        ValueError: the text is empty.

    >>> [(synset.name, len(synset.class_ids)) for synset in search("retriev")][:3]
    [('retriever.n.01', 5), ('flat-coated_retriever.n.01', 1), ('curly-coated_retriever.n.01', 1)]
    """
    part = _normalized(text)
    if not part:
        raise ValueError("the text to search for is empty; give a part of a word")
    ranks: dict[str, int] = {}
    for word, senses in _graph().senses.items():
        if part in word:
            rank = 0 if word == part else 1 if f" {part}" in f" {word}" else 2
            for wnid in senses.values():
                ranks[wnid] = min(rank, ranks.get(wnid, rank))
    under = _graph().under
    return [_of_wnid(wnid) for wnid in sorted(ranks, key=lambda wnid: (ranks[wnid], -len(under[wnid]), wnid))]


def common_ancestor(*targets: str | int) -> Synset:
    """The deepest synset that is, or lies above, each of several targets.

    Of several equally deep ones it is the one over the fewest classes, then the one with the smallest wnid.

    Args:
        targets: each as for `find`.

    Raises:
        ValueError: there is no target, or one is unknown or ambiguous.

    >>> common_ancestor("dog", "cat").name
    'carnivore.n.01'
    >>> common_ancestor("dog", "beagle").name
    'dog.n.01'
    """
    if not targets:
        raise ValueError("there is no target; give one or more")
    synsets = [find(target) for target in targets]
    shared = set.intersection(*({synset.wnid, *synset.ancestors} for synset in synsets))
    return min(map(_of_wnid, shared), key=lambda synset: (-synset.depth, len(synset.class_ids), synset.wnid))


def wnid(class_id: int) -> str:
    """The wnid of a class, 0 to 999.

    >>> wnid(243)
    'n02108422'
    """
    return _of_class_id(class_id).wnid


def wnids() -> tuple[str, ...]:
    """The wnids of all 1,000 classes, by class id.

    >>> wnids()[243]
    'n02108422'
    """
    return tuple(_graph().classes)


def is_known(wnid: str) -> bool:
    """Whether a wnid is one of the synsets here: those of the classes, and all above them."""
    return wnid in _graph().rows


@cache
def lineage(wnid: str) -> frozenset[str]:
    """The wnids of a synset and of all above it.

    Raises:
        ValueError: the wnid is unknown.

    >>> sorted(find(each).words[0] for each in lineage("n00002684"))
    ['entity', 'object', 'physical entity']
    """
    return frozenset([wnid]).union(*map(lineage, _of_wnid(wnid).parents))


def words(class_id: int) -> str:
    """The words for a class, 0 to 999, in one string. They are no key: 134 and 517 are both "crane".

    >>> words(0)
    'tench, Tinca tinca'
    """
    return _of_class_id(class_id).label


class _Graph:
    """The table in data/synsets.tsv. A `Synset` is made when it is asked for: all of them take longer than the rest."""

    def __init__(self) -> None:
        self.rows: dict[str, list[str]] = {}  # by wnid, sorted: the columns of the table
        self.ids: dict[str, int] = {}  # wnid of a class -> class id; in the order of both
        self.children: dict[str, list[str]] = {}  # wnid -> wnids one step more special
        self.senses: dict[str, dict[int, str]] = {}  # word in lower case, with blanks -> noun sense -> wnid
        with open(_TABLE, encoding="utf-8") as file:  # noqa: PTH123  importing pathlib takes half as long again
            table = file.read()
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
        self.under: dict[str, frozenset[int]] = {}  # wnid -> the classes that it is or lies above
        self._fill_under(ENTITY)

    def _fill_under(self, wnid: str) -> frozenset[int]:
        if wnid not in self.under:
            own = {self.ids[wnid]} if wnid in self.ids else set()
            self.under[wnid] = frozenset(own.union(*map(self._fill_under, self.children.get(wnid, ()))))
        return self.under[wnid]


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
        raise ValueError(_several_meanings(word, senses))
    return _of_wnid(senses[min(senses)])


@cache
def _labels() -> dict[str, str]:
    """All words of each synset of several, in lower case -> its wnid."""
    return {_of_wnid(wnid).label.lower(): wnid for wnid, row in _graph().rows.items() if "," in row[3]}


def _of_label(label: str) -> Synset:
    label = ", ".join(part.strip() for part in label.split(","))
    if label not in _labels():
        raise ValueError(f"unknown words {label!r}; {_close(label, list(_labels()), cutoff=0.75)}")
    return _of_wnid(_labels()[label])


def _meaning(operand: str) -> tuple[str, frozenset[int]]:
    synset = find(operand)
    return synset.words[0], _graph().under[synset.wnid]


def _normalized(text: str) -> str:
    return " ".join(text.replace("_", " ").lower().split())


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


def _several_meanings(word: str, senses: dict[int, str]) -> str:
    return f"{word!r} has several meanings: {_listed(senses)}; give the wnid"


def _listed(senses: dict[int, str]) -> str:
    return ", or ".join(_described(_of_wnid(wnid)) for _, wnid in sorted(senses.items()))


def _described(synset: Synset) -> str:
    gloss = synset.gloss.partition(";")[0]
    if len(gloss) > GLOSS_SHOWN:
        gloss = gloss[:GLOSS_SHOWN].rpartition(" ")[0] + " ..."
    count = len(synset.class_ids)
    return f"{synset.wnid} {synset.name} ({gloss}: {count} {'class' if count == 1 else 'classes'})"
