"""Find out what is wrong with converted weights that load without a complaint and answer nonsense.

Flipped kernels, a dense layer in the wrong order, swapped colours: no shape shows them. Every hypothesis of
`hypotheses` is tried against known answers (`evidence`), and the one that explains them is named, or none is.
"""

from __future__ import annotations

import itertools
import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from converters.doctor.evidence import Evidence, Golden, Labels, Recorded, recordings
from converters.doctor.hypotheses import Change, State, families, with_background
from convnets_torch.card import Card
from convnets_torch.images.decoding import Decoded, Picture, PictureWarning, Reading, decode, warn
from convnets_torch.images.levels import Background, Depth
from convnets_torch.inference.classification import card_of
from convnets_torch.inference.pipeline import THREADS, ahead
from convnets_torch.networks import Network
from convnets_torch.weights import build, load
from convnets_torch.wordnet.targets import find_target

BATCH = 16  # pictures that go through a network together
FRONT = 3  # best hypotheses from which the search goes on
FINE = ("epsilon", "resize")  # families of small effect: never what hides another fault, so not tried in pairs

Changes = tuple[Change, ...]  # in the order of the families, at most one of each; empty: the file as it is


@dataclass(frozen=True)
class Hypothesis:
    """One that was tried.

    Attributes:
        changes: what is done to the file, in a few words each; empty for the file as it is.
        figure: with labels the typical probability of the expected answers (their geometric mean, 5 % of wrong
            labels allowed for); with a golden the largest error, relative to the largest recorded output.
    """

    changes: tuple[str, ...]
    figure: float


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        verdict: "corrected", "as it is" or "undecided".
        sentence: the verdict for people.
        measure: what the figures are, "probability" or "error".
        hypotheses: all that were tried, the best first.
        winner: the one that was named; None when undecided.
        untold: families that the evidence does not settle, as the winner and another of the family explain it alike.
        network: with the winner's changes and its card, in eval mode; None when undecided.
    """

    verdict: str
    sentence: str
    measure: str
    hypotheses: tuple[Hypothesis, ...]
    winner: Hypothesis | None
    untold: tuple[str, ...]
    network: Network | None


def diagnose(
    network: Network | str | os.PathLike[str],
    pictures: Iterable[Picture] = (),
    expected: str | int | Sequence[str | int] | None = None,
    *,
    golden: Golden | None = None,
    batch: int | Literal["auto"] = "auto",
    workers: int | None = None,
    max_pixels: int | None = None,
    allow_truncated: bool = False,
    depth: Depth = None,
    background: Background = None,
) -> Diagnosis:
    """Try what may be wrong with weights against pictures of known content, or against recorded outputs.

    The search is not the full product. Every single change is tried; where none explains the evidence, every pair as
    well (of epsilon and resize rule the single ones); then, from the three best, every hypothesis that differs from
    one of them in one family, until nothing better comes; and so once more around the one that is named. Three
    faults at once are found where mending two of them already helps.

    The rule of the verdict: of the hypotheses that are tied with the best one, that with the fewest changes is named
    (values of the network's own presets before others), and the file is right as it is where that is among them.
    With labels, two are tied where one makes all expected answers together less than a hundred times likelier than
    the other; with a golden, where its error is less than three times the smallest, or below 1e-5. What the named
    one and another of the same family explain alike is said: `untold`. Undecided it is where two of equally few
    changes are tied; and where the best explains nothing: expected answers less than a hundred times likelier than
    by chance, or the most probable for less than half of the pictures; recorded outputs missed by more than 1e-3
    of the largest.

    Args:
        network: with its card, in eval mode, as `load` gives it, on any device; or what `load` takes. It stays as it
            is.
        pictures: whatever `read_picture` takes; a handful of clear ones is enough.
        expected: a target (`find_target`) for all pictures, or a sequence of one for each.
        golden: instead of pictures and labels.
        batch: how many pictures go through the network together; "auto" is 16.
        workers: threads that decode; by default one for each core, at most 16.
        max_pixels, allow_truncated, depth, background: as in `read_picture`.

    Returns:
        The verdict, with the corrected network.

    Raises:
        OSError: the weights cannot be read, or none of the pictures.
        ValueError: nothing to judge by, or what does not fit the network; a network without head or without finite
            outputs; a target that is not known, or means all classes.

    Warns:
        PictureWarning: a picture cannot be read, and is left out.

    >>> import numpy as np
    >>> network, x = load("alexnet.safetensors"), np.random.default_rng(0).uniform(0, 255, (2, 227, 227, 3)).round()
    >>> answers = network(torch.from_numpy(x - network.card.preprocessing.mean).permute(0, 3, 1, 2).float())
    >>> diagnose(network, golden=Golden(x, answers.detach().numpy())).verdict
    'as it is'
    """
    if not isinstance(network, Network):
        network = load(network)
    card = card_of(network)
    kinds: list[Labels] | list[Recorded]
    if golden is not None:
        if expected is not None or list(pictures):
            raise ValueError("both a golden and pictures are given; diagnose with one of the two")
        kinds = recordings(golden, card)
    else:
        reading = Reading(card.preprocessing.exif, max_pixels, allow_truncated, depth, background)
        kinds = [_labels(card, list(pictures), expected, reading, workers or THREADS)]
    return _Search(network, card, kinds, BATCH if batch == "auto" else batch).diagnosis()


def _labels(
    card: Card,
    pictures: list[Picture],
    expected: str | int | Sequence[str | int] | None,
    reading: Reading,
    threads: int,
) -> Labels:
    if not pictures:
        raise ValueError("there are no pictures to judge by; give a few with known content, or a golden")
    if expected is None:
        raise ValueError("what the pictures show is not said; give the expected class, or one for each picture")
    if card.activation == "none":
        raise ValueError("the card says that outputs are no probabilities (activation none); give a golden instead")
    targets = [expected] * len(pictures) if isinstance(expected, str | int) else list(expected)
    if len(targets) != len(pictures):
        raise ValueError(f"{len(pictures)} pictures have {len(targets)} expected answers; give one for each")
    named = card
    if with_background(card):
        named = replace(card, arguments={**card.arguments, "classes": 1000}, class_names="imagenet-1k")
    ids = {target: find_target(named, target).class_ids for target in dict.fromkeys(targets)}
    for target, class_ids in ids.items():
        if len(class_ids) == named.classes:
            raise ValueError(f"{target!r} means all {named.classes} classes, so any answer is right; name fewer")
    pixels, right, problems = [], [], []

    def read(picture: Picture) -> Decoded | Exception:
        try:
            return decode(picture, reading)
        except (OSError, ValueError) as error:
            return error

    for (_, found), target in zip(ahead(pictures, read, most=2 * threads, threads=threads), targets, strict=True):
        if isinstance(found, Exception):
            problems.append(found)
            continue
        warn(found.remarks)
        pixels.append(found.pixels)
        right.append(ids[target])
    if not pixels:
        raise problems[0]
    for problem in problems:
        warnings.warn(f"{problem}; it is left out", PictureWarning, stacklevel=3)
    return Labels(pixels, right, named.classes)


@dataclass(frozen=True)
class _Tried:
    """A hypothesis under the evidence that suits it best."""

    score: float
    evidence: Evidence
    explained: bool


class _Search:
    """Hypotheses tried so far on one network, and what follows from them."""

    def __init__(self, network: Network, card: Card, kinds: Sequence[Labels] | Sequence[Recorded], batch: int) -> None:
        self.network, self.card, self.kinds, self.batch = network, card, kinds, batch
        self.families = families(network, card, exact=isinstance(kinds[0], Recorded))
        self.order = {family: place for place, family in enumerate(self.families)}
        tested = [family for family in self.families if any(family not in kind.untested for kind in kinds)]
        self.families = {family: self.families[family] for family in tested}
        self.state: State = network.state_dict()
        self.tried: dict[Changes, _Tried] = {}
        self.logits: dict[tuple[Changes, int], Tensor] = {}  # of changes that are more than rows of the last layer

    def diagnosis(self) -> Diagnosis:
        singles = [(change,) for changes in self.families.values() for change in changes]
        pairs = [
            (one, two)
            for first, second in itertools.combinations([name for name in self.families if name not in FINE], 2)
            for one, two in itertools.product(self.families[first], self.families[second])
        ]
        self._try([(), *singles])
        if not self.tried[self._ranked()[0]].explained:
            self._try(pairs)
        if all(math.isinf(entry.score) for entry in self.tried.values()):
            raise ValueError("the network's outputs are NaN or infinite whatever is tried: its weights are broken")
        while (best := self._ranked()[:FRONT]) and self._try(itertools.chain(*map(self._neighbours, best))):
            if self._ranked()[:FRONT] == best:
                break
        while self._try(itertools.chain(*map(self._neighbours, self._simplest()))):
            pass
        return self._verdict()

    def _try(self, hypotheses: Iterable[Changes]) -> int:
        """Run what has not been run, and say how many that were; those that share weights one after another."""
        new = {self._sorted(changes) for changes in hypotheses} - self.tried.keys()
        groups: dict[Changes, list[Changes]] = {}
        for changes in sorted(new, key=lambda changes: [change.name for change in changes]):
            of_network = tuple(change for change in changes if not change.of_input and change.rows is None)
            groups.setdefault(of_network, []).append(changes)
        for of_network, members in groups.items():
            changed = self._changed(of_network).float()
            for changes in members:
                card = _apply(changes, {}, self.card, of_input=True)[1]
                self.tried[changes] = self._judged(changed, changes, card)
        return len(new)

    def _judged(self, changed: Network, changes: Changes, card: Card) -> _Tried:
        entries = []
        kinds: Sequence[Evidence] = self.kinds
        for number, kind in enumerate(kinds):
            if any(change.family in kind.untested for change in changes):
                continue
            key = tuple(change for change in changes if change.rows is None), number
            if key not in self.logits:
                self.logits[key] = _logits(changed, kind, card, self.batch)
            logits = self.logits[key]
            for change in changes:
                logits = logits if change.rows is None else logits[:, list(change.rows)]
            score = kind.score(logits, card)
            entries.append(_Tried(score, kind, math.isfinite(score) and kind.explained(logits, card)))
        return max(entries, key=lambda entry: entry.score, default=_Tried(-math.inf, self.kinds[0], False))

    def _changed(self, changes: Changes) -> Network:
        """A new network with the changes; arrays that they do not touch are shared with the one that was given."""
        state, card = _apply(changes, self.state, self.card)
        changed = build(card.network, card.arguments)
        changed.load_state_dict(dict(state), assign=True)
        changed.card = card
        return changed.eval().requires_grad_(False)

    def _sorted(self, changes: Iterable[Change]) -> Changes:
        return tuple(sorted(changes, key=lambda change: self.order[change.family]))

    def _neighbours(self, changes: Changes) -> list[Changes]:
        """What differs in one family: another change of it, one more, or one less."""
        found = []
        for family, options in self.families.items():
            others = tuple(change for change in changes if change.family != family)
            found += [others, *((*others, option) for option in options)]
        return [self._sorted(neighbour) for neighbour in found]

    def _swapped(self, changes: Changes, option: Change) -> Changes | None:
        """With this change in place of what its family had; None where nothing changes."""
        others = [change for change in changes if change.family != option.family]
        return None if option in changes else self._sorted([*others, option])

    def _ranked(self) -> list[Changes]:
        """The best first; of equal ones those with fewer changes."""
        return sorted(self.tried, key=lambda changes: (-self.tried[changes].score, *_cost(changes), _names(changes)))

    def _tied(self) -> list[Changes]:
        """What cannot be told from the best one by its own evidence, the best first."""
        ranked = self._ranked()
        best = self.tried[ranked[0]]
        return [changes for changes in ranked if best.evidence.tied(best.score, self.tried[changes].score)]

    def _simplest(self) -> list[Changes]:
        """Of those tied with the best, the ones with the fewest changes, and the usual before others."""
        tied = self._tied()
        cost = min(map(_cost, tied))
        return [changes for changes in tied if _cost(changes) == cost]

    def _verdict(self) -> Diagnosis:
        ranked = tuple(
            Hypothesis(_names(changes), self.kinds[0].figure(self.tried[changes].score)) for changes in self._ranked()
        )
        measure = "error" if isinstance(self.kinds[0], Recorded) else "probability"
        simplest, tied = self._simplest(), self._tied()
        winner, *rivals = simplest
        entry = self.tried[winner]
        if not entry.explained or rivals:
            what = self._unexplained() if not entry.explained else _several(simplest)
            return Diagnosis("undecided", f"undecided: {what}", measure, ranked, None, (), None)
        untold = tuple(
            family
            for family, options in self.families.items()
            if family not in entry.evidence.untested
            and any(self._swapped(winner, option) in tied for option in options)
        )
        figures = [self.kinds[0].figure(self.tried[changes].score) for changes in ((), winner)]
        sentence = self._sentence(winner, *figures) + self._reservations(entry, untold)
        verdict = "corrected" if winner else "as it is"
        named = Hypothesis(_names(winner), figures[1])
        return Diagnosis(verdict, sentence, measure, ranked, named, untold, self._corrected(winner))

    def _sentence(self, winner: Changes, before: float, after: float) -> str:
        exact = isinstance(self.kinds[0], Recorded)
        if not winner:
            shown = f"the recorded outputs are met within {after:.1e}" if exact else f"it gives {after:.2f}"
            return f"nothing found: the file is right as it is ({shown})"
        found = " and ".join(change.finding for change in winner)
        if exact:
            return f"{found}: the file as it is misses the recorded outputs by {before:.1e}, corrected by {after:.1e}"
        return f"{found}: the file as it is gives {before:.2g}, corrected {after:.2f}"

    def _reservations(self, entry: _Tried, untold: tuple[str, ...]) -> str:
        """What the sentence must not be taken to say."""
        said = []
        if isinstance(entry.evidence, Recorded) and entry.evidence.form == "preprocessed":
            taken = "the recorded input was taken as already preprocessed"
            said.append(f"{taken}, so scale, mean and resizing are not tested")
        if untold:
            said.append(f"this evidence cannot tell: {', '.join(untold)}")
        return "".join(f"; {sentence}" for sentence in said)

    def _unexplained(self) -> str:
        best = self._ranked()[0]
        what = " with ".join(["the file", ", ".join(_names(best))]) if best else "the file as it is"
        figure = self.kinds[0].figure(self.tried[best].score)
        if isinstance(self.kinds[0], Recorded):
            return f"nothing explains the recorded outputs; nearest is {what}, which misses them by {figure:.1e}"
        return (
            f"nothing explains the expected answers; nearest is {what}, which gives them {figure:.2g};"
            " give more pictures, or check what they show"
        )

    def _corrected(self, winner: Changes) -> Network:
        changed = self._changed(winner)
        card = card_of(changed)
        if winner and card.source is not None:
            changes = (*card.source.changes, *(f"{name} (doctor)" for name in _names(winner)))
            changed.card = replace(card, source=replace(card.source, changes=changes))
        return changed


def _several(tied: Sequence[Changes]) -> str:
    described = [" and ".join(change.finding for change in changes) for changes in tied[:4]]
    more = f", or {len(tied) - 4} others" if len(tied) > 4 else ""
    return f"equally well explained by {'; or '.join(described)}{more}; more pictures or a golden may tell"


def _cost(changes: Changes) -> tuple[int, int]:
    """How much a hypothesis supposes: the number of changes, then that of unusual ones."""
    return len(changes), sum(not change.usual for change in changes)


def _names(changes: Changes) -> tuple[str, ...]:
    return tuple(change.name for change in changes)


def _apply(changes: Changes, state: State, card: Card, *, of_input: bool = False) -> tuple[Mapping[str, Tensor], Card]:
    for change in changes:
        if change.of_input or not of_input:
            state, card = change.apply(state, card)
    return state, card


def _logits(network: Network, kind: Evidence, card: Card, size: int) -> Tensor:
    """Outputs (N, classes) on the CPU in float32, computed without TF32: its rounding is as large as some faults."""
    inputs = torch.from_numpy(kind.inputs(card))
    device = next(network.parameters()).device
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        parts = [network(batch.to(device)).float().cpu() for batch in torch.split(inputs, size)]
    return torch.cat(parts)
