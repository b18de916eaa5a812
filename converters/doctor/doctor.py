"""Diagnose converted weights that load without an error but give wrong answers.

Flipped kernels, a permuted dense layer and swapped colour channels do not change any shape. Every hypothesis from
`hypotheses` is tested against known answers (`evidence`); the verdict names the one that explains them, if any does.
"""

from __future__ import annotations

import itertools
import math
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from converters.doctor.evidence import Evidence, Golden, GoldenEvidence, LabelEvidence, recordings
from converters.doctor.hypotheses import Change, State, families, with_background
from convnets_torch.card import Card
from convnets_torch.images.decoding import Picture, PictureWarning, Reading, ReadingKeywords, decode, warn
from convnets_torch.inference.classification import card_of
from convnets_torch.inference.pipeline import THREADS, run_pictures
from convnets_torch.networks import NETWORKS, Network
from convnets_torch.options import checked, renamed, shows
from convnets_torch.weights import build, load
from convnets_torch.wordnet.targets import find_target

BATCH = 16  # pictures per batch
FRONT = 3  # number of best hypotheses from which the search continues
FINE = ("epsilon", "resize")  # families of small effect: they never hide another fault, so are not tried in pairs

Changes = tuple[Change, ...]  # in family order, at most one per family; empty means the file as it is


@dataclass(frozen=True)
class Hypothesis:
    """A tested hypothesis.

    Attributes:
        changes: short descriptions of the changes to the file; empty for the file as it is.
        figure: with labels, the geometric mean of the expected answers' probabilities, allowing for 5 % wrong labels;
            with a golden, the largest error relative to the largest recorded output.
    """

    changes: tuple[str, ...]
    figure: float


@dataclass(frozen=True)
class Diagnosis:
    """The result of `diagnose`.

    Attributes:
        verdict: "corrected", "as it is" or "undecided".
        sentence: the verdict in one sentence.
        measure: what `Hypothesis.figure` is, "probability" or "error".
        hypotheses: all tested hypotheses, best first.
        winner: the hypothesis named by the verdict; None if undecided.
        untold: families that the evidence does not settle: the winner and another member explain it equally well.
        network: the network with the winner's changes and their card, in eval mode; None if undecided.
    """

    verdict: str
    sentence: str
    measure: str
    hypotheses: tuple[Hypothesis, ...]
    winner: Hypothesis | None
    untold: tuple[str, ...]
    network: Network | None


@renamed(pictures="images")
@shows(ReadingKeywords, Reading)
def diagnose(
    network: Network | str | os.PathLike[str],
    images: Iterable[Picture] = (),
    expected: str | int | Sequence[str | int] | None = None,
    *,
    golden: Golden | None = None,
    batch: int | Literal["auto"] = "auto",
    workers: int | None = None,
    **reading: Unpack[ReadingKeywords],
) -> Diagnosis:
    """Find the fault in converted weights, using pictures of known content or recorded outputs.

    The search does not cover the full product of all changes. It tests every single change and, if none explains the
    evidence, every pair (epsilon and resize rule are only tested singly). From the three best hypotheses it then tests
    all that differ from one of them in one family, until nothing improves, and finally all around the simplest
    hypotheses tied with the best. Three simultaneous faults are found if correcting two of them already helps.

    Verdict: of the hypotheses tied with the best, the one with the fewest changes is named, with values from the
    network's own presets preferred; if the unchanged file is among them, the file is right as it is. With labels, a
    hypothesis is tied with the best if the best makes all expected answers together less than 100 times as likely;
    with a golden, if its error is at most three times the smallest, or at most 1e-5. Families in which another member
    explains the evidence as well as the named one are listed in `untold`. The verdict is "undecided" if two hypotheses
    with equally few changes are tied, or if the best explains nothing: the expected answers are less than 100 times as
    likely as by chance, or are the top class for less than half of the pictures; or the recorded outputs are missed by
    more than 1e-3 of the largest.

    Args:
        network: a network with its card, in eval mode, on any device, as returned by `load`; or an argument for `load`.
            It is not modified.
        images: anything that `read_picture` takes; a handful of clear pictures is enough.
        expected: a target (see `find_target`) for all pictures, or a sequence with one target for each.
        golden: recorded inputs and outputs, instead of pictures and labels.
        batch: pictures per batch; "auto" is 16.
        workers: decoding threads; by default one per core, at most 16.
        **reading: as for `read_picture`.

    Returns:
        The verdict, with the corrected network.

    Raises:
        OSError: the weights cannot be read, or none of the pictures can.
        ValueError: the evidence is missing or does not fit the network; the network has no head or no finite outputs;
            or a target is unknown or covers all classes.

    Warns:
        PictureWarning: a picture cannot be read and is left out.

    >>> import numpy as np
    >>> network, x = load("alexnet.safetensors"), np.random.default_rng(0).uniform(0, 255, (2, 227, 227, 3)).round()
    >>> answers = network(torch.from_numpy(x - network.card.preprocessing.mean).permute(0, 3, 1, 2).float())
    >>> diagnose(network, golden=Golden(x, answers.detach().numpy())).verdict
    'as it is'
    """
    decoding = Reading(**checked(reading, ReadingKeywords))
    if not isinstance(network, Network):
        network = load(network)
    card = card_of(network)
    if card.network not in NETWORKS:
        raise ValueError(
            f"the network is {card.network}, but only conversions of {', '.join(sorted(NETWORKS))} are diagnosed; to"
            " check a network that was converted by its config, convert it again with --proof"
        )
    kinds: Sequence[Evidence]
    if golden is not None:
        if expected is not None or list(images):
            raise ValueError("both a golden and pictures are given; diagnose with one of the two")
        kinds = recordings(golden, card)
    else:
        decoding = decoding._replace(exif=card.preprocessing.exif)
        kinds = [_labels(card, list(images), expected, decoding, workers or THREADS)]
    return _Search(network, card, kinds, BATCH if batch == "auto" else batch).diagnosis()


def _labels(
    card: Card, images: list[Picture], expected: str | int | Sequence[str | int] | None, reading: Reading, threads: int
) -> LabelEvidence:
    if not images:
        raise ValueError("there are no pictures to judge by; give a few with known content, or a golden")
    if expected is None:
        raise ValueError("the expected answers are missing; give one class, or one for each picture")
    if card.activation == "none":
        raise ValueError(
            "the card says that the outputs are not probabilities (activation none); give a golden instead"
        )
    targets = [expected] * len(images) if isinstance(expected, str | int) else list(expected)
    if len(targets) != len(images):
        raise ValueError(f"{len(images)} pictures have {len(targets)} expected answers; give one for each")
    named = card
    if with_background(card):
        named = replace(card, arguments={**card.arguments, "classes": 1000}, class_names="imagenet-1k")
    ids = {target: find_target(named, target).class_ids for target in dict.fromkeys(targets)}
    for target, class_ids in ids.items():
        if len(class_ids) == named.classes:
            raise ValueError(f"{target!r} means all {named.classes} classes, so any answer is right; name fewer")
    pixels, right, problems = [], [], []
    rows = run_pictures(
        images,
        lambda image: decode(image, reading),
        lambda found: [each.pixels for each in found],
        batch=1,
        most=2 * threads,
        threads=threads,
    )
    for row, target in zip(rows, targets, strict=True):
        if row.value is None:
            problems.append(row.error or ValueError("the picture has no pixels"))
            continue
        warn(row.notes)
        pixels.append(row.value)
        right.append(ids[target])
    if not pixels:
        raise problems[0]
    for problem in problems:
        warnings.warn(f"{problem}; it is left out", PictureWarning, stacklevel=4)
    return LabelEvidence(pixels, right, named.classes)


@dataclass(frozen=True)
class _Tried:
    """The score of a hypothesis under the evidence that fits it best."""

    score: float
    evidence: Evidence
    explained: bool


class _Search:
    """The search for the hypothesis that explains the evidence for one network."""

    def __init__(self, network: Network, card: Card, kinds: Sequence[Evidence], batch: int) -> None:
        self.network, self.card, self.kinds, self.batch = network, card, kinds, batch
        self.families = families(network, card, exact=isinstance(kinds[0], GoldenEvidence))
        self.order = {family: place for place, family in enumerate(self.families)}
        tested = [family for family in self.families if any(family not in kind.untested for kind in kinds)]
        self.families = {family: self.families[family] for family in tested}
        self.state: State = network.state_dict()
        self.tried: dict[Changes, _Tried] = {}
        self.logits: dict[tuple[Changes, int], Tensor] = {}  # cached by changes (except of output rows) and evidence

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
        """Test the hypotheses not yet tested, grouped by shared weights; return how many these were."""
        new = {self._sorted(changes) for changes in hypotheses} - self.tried.keys()
        groups: dict[Changes, list[Changes]] = {}
        for changes in sorted(new, key=lambda changes: [change.name for change in changes]):
            of_network = tuple(change for change in changes if not change.of_input and change.rows is None)
            groups.setdefault(of_network, []).append(changes)
        for of_network, members in groups.items():
            changed = self._changed(of_network).float()
            for changes in members:
                _, card = _apply([change for change in changes if change.of_input], {}, self.card)
                self.tried[changes] = self._judged(changed, changes, card)
        return len(new)

    def _judged(self, changed: Network, changes: Changes, card: Card) -> _Tried:
        entries = []
        for number, kind in enumerate(self.kinds):
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
        """Return a new network with the changes; unchanged arrays are shared with the original."""
        state, card = _apply(changes, self.state, self.card)
        changed = build(card.network, card.arguments)
        changed.load_state_dict(dict(state), assign=True)
        changed.card = replace(card, proof=None) if changes else card
        return changed.eval().requires_grad_(False)

    def _sorted(self, changes: Iterable[Change]) -> Changes:
        return tuple(sorted(changes, key=lambda change: self.order[change.family]))

    def _with(self, changes: Changes, option: Change) -> Changes:
        """Return the changes with `option` as that of its family."""
        return self._sorted([option, *(change for change in changes if change.family != option.family)])

    def _neighbours(self, changes: Changes) -> list[Changes]:
        """Return all hypotheses that differ in one family: a change added, removed or replaced."""
        fewer = [tuple(other for other in changes if other != change) for change in changes]
        return [*fewer, *(self._with(changes, option) for options in self.families.values() for option in options)]

    def _ranked(self) -> list[Changes]:
        """Return the tested hypotheses, best first; equal ones by fewer changes."""
        return sorted(self.tried, key=lambda changes: (-self.tried[changes].score, *_cost(changes), _names(changes)))

    def _tied(self) -> list[Changes]:
        """Return the hypotheses that the best one's evidence cannot distinguish from it, best first."""
        ranked = self._ranked()
        best = self.tried[ranked[0]]
        return [changes for changes in ranked if best.evidence.tied(best.score, self.tried[changes].score)]

    def _simplest(self) -> list[Changes]:
        """Return the hypotheses of lowest cost among those tied with the best."""
        tied = self._tied()
        cost = min(map(_cost, tied))
        return [changes for changes in tied if _cost(changes) == cost]

    def _verdict(self) -> Diagnosis:
        ranked = tuple(
            Hypothesis(_names(changes), self.kinds[0].figure(self.tried[changes].score)) for changes in self._ranked()
        )
        measure = "error" if isinstance(self.kinds[0], GoldenEvidence) else "probability"
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
            and any(self._with(winner, option) in tied for option in options if option not in winner)
        )
        figures = [self.kinds[0].figure(self.tried[changes].score) for changes in ((), winner)]
        sentence = self._sentence(winner, *figures) + self._reservations(entry, untold)
        verdict = "corrected" if winner else "as it is"
        named = Hypothesis(_names(winner), figures[1])
        return Diagnosis(verdict, sentence, measure, ranked, named, untold, self._corrected(winner))

    def _sentence(self, winner: Changes, before: float, after: float) -> str:
        exact = isinstance(self.kinds[0], GoldenEvidence)
        if not winner:
            shown = f"the recorded outputs are met within {after:.1e}" if exact else f"it gives {after:.2f}"
            return f"nothing found: the file is right as it is ({shown})"
        found = " and ".join(change.finding for change in winner)
        if exact:
            return f"{found}: the file as it is misses the recorded outputs by {before:.1e}, corrected by {after:.1e}"
        return f"{found}: the file as it is gives {before:.2g}, corrected {after:.2f}"

    def _reservations(self, entry: _Tried, untold: tuple[str, ...]) -> str:
        """Return the caveats to append to the verdict's sentence."""
        said = ""
        if isinstance(entry.evidence, GoldenEvidence) and entry.evidence.form == "preprocessed":
            said = "; the recorded input was taken as already preprocessed, so scale, mean and resizing are not tested"
        return f"{said}; this evidence cannot tell: {', '.join(untold)}" if untold else said

    def _unexplained(self) -> str:
        best = self._ranked()[0]
        what = " with ".join(["the file", ", ".join(_names(best))]) if best else "the file as it is"
        figure = self.kinds[0].figure(self.tried[best].score)
        if isinstance(self.kinds[0], GoldenEvidence):
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
    return f"equally well explained by {'; or '.join(described)}{more}; more pictures or a golden may decide"


def _cost(changes: Changes) -> tuple[int, int]:
    """Return (number of changes, number of unusual changes)."""
    return len(changes), sum(not change.usual for change in changes)


def _names(changes: Changes) -> tuple[str, ...]:
    return tuple(change.name for change in changes)


def _apply(changes: Iterable[Change], state: State, card: Card) -> tuple[State, Card]:
    for change in changes:
        state, card = change.apply(state, card)
    return state, card


def _logits(network: Network, kind: Evidence, card: Card, size: int) -> Tensor:
    """Compute outputs (N, classes), float32 on the CPU, without TF32: its rounding is as large as some faults."""
    inputs = torch.from_numpy(kind.inputs(card))
    device = next(network.parameters()).device
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        parts = [network(batch.to(device)).float().cpu() for batch in torch.split(inputs, size)]
    return torch.cat(parts)
