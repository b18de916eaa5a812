"""Evaluate a network on labelled pictures, in a run that can be interrupted and resumed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from convnets_torch import files
from convnets_torch._version import __version__
from convnets_torch.card import Activation, Card, Learnt, find_learnt, keeps_digests
from convnets_torch.embeddings.cache import fingerprint
from convnets_torch.evaluation.labels import GroundTruth
from convnets_torch.evaluation.metrics import SIZES, ClassErrors, ErrorRate, Ranking, confusion, errors_by_class, rank
from convnets_torch.evaluation.several_labels import SeveralLabels, check_several, score_labels
from convnets_torch.files import alone_in, check_own_folder, check_writable, open_own, replacing, sha256
from convnets_torch.images.decoding import MOST_BYTES, Reading, picture_name
from convnets_torch.images.levels import Background, Depth, said_levels
from convnets_torch.inference.engines import Engine
from convnets_torch.inference.pipeline import (
    VIEWS,
    Predicted,
    Runnable,
    Views,
    batch_for,
    card_of,
    is_whole,
    predicted,
    ready_card,
    together,
)
from convnets_torch.networks import CATALOG
from convnets_torch.text import check_choice
from convnets_torch.wordnet.targets import class_name, class_wnid


@dataclass(frozen=True)
class Published:
    """Errors on ImageNet as somebody gave them; they were not measured here.

    Attributes:
        errors: k -> share of pictures whose class is not among the best k, 0 to 1.
        source: whose figures they are.
    """

    errors: Mapping[int, float]
    source: str


SOURCE = "convnets-keras' README, Performances on ImageNet"


def published(card: Card) -> Published | None:
    """The original's own figures for a network, where its classes are ImageNet's 1,000; None for all others.

    >>> from convnets_torch.card import read_card
    >>> published(read_card("alexnet.safetensors")).errors[5]
    0.2009
    """
    spec = CATALOG.get(card.network)
    return Published(spec.errors, SOURCE) if card.imagenet and spec is not None and spec.errors else None


class Clock:
    """Seconds that a network runs, added up over its calls."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._seconds = device, 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def time(self, run: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Run it, and count. On CUDA, where a call only starts the work, events in its stream are what is counted."""
        if self._device.type == "cuda":
            with torch.cuda.device(self._device):
                begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                begin.record()
                found = run(images)
                end.record()
                self._events.append((begin, end))
            return found
        start = time.perf_counter()
        found = run(images)
        self._seconds += time.perf_counter() - start
        return found

    @property
    def seconds(self) -> float:
        """So far; on CUDA it waits for what was started."""
        if self._events:
            torch.cuda.synchronize(self._device)
            self._seconds += sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
            self._events = []
        return self._seconds


class TimedNetwork(nn.Module):
    """A network around which a clock runs; its parameters are the network's own."""

    def __init__(self, network: nn.Module, card: Card | None, clock: Clock) -> None:
        super().__init__()
        self.network, self.card, self._clock = network, card, clock
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        return self._clock.time(self.network, images)


class TimedEngine:
    """The same around an engine, which is no module."""

    def __init__(self, engine: Runnable, clock: Clock) -> None:
        self.card, self._engine, self._clock = engine.card, engine, clock
        self.mapped = getattr(engine, "mapped", None)  # where it gives score maps, which `predict` refuses

    def __call__(self, images: Tensor, /) -> Tensor:
        return self._clock.time(self._engine, images)


def timed(network: Runnable) -> tuple[Runnable, Clock]:
    """The network with a clock around it, and the clock."""
    if not isinstance(network, nn.Module):
        clock = Clock(torch.device("cpu"))
        return TimedEngine(network, clock), clock
    clock = Clock(next(network.parameters()).device)
    return TimedNetwork(network, ready_card(network), clock), clock


def peak_memory() -> int | None:
    """Bytes that this process took of the computer's memory at most since it began; None where nobody can say."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


NOTE, OUTPUTS, DONE = "run.json", "outputs.f32", "done.jsonl"
MOST_NOTE = 1 << 24  # bytes: the names of 100,000 classes
MOST_LINE = 1 << 26  # bytes of a line of `done.jsonl`: why each of some pictures could not be read
BLOCK = 1 << 20  # values that are looked at together


class OutputFile:
    """Rows of outputs, one for each picture that could be read, in a file that only grows.

    Beside it a line of `done.jsonl` says, for some pictures after some more, which could not be read and what checksum
    the rows of the others have. The line is written after the rows have reached the disk, so that whatever moment a
    process is killed at, lines without whole rows are none, and rows without a line are dropped.

    Attributes:
        run: what tells the run from others.
        done: how many pictures are.
        failed: number of a picture -> why it could not be used.
        remarks: on those that could, in order.
    """

    def __init__(self, folder: Path | None, run: Mapping[str, Any], pictures: int, classes: int) -> None:
        """Begin, or go on.

        Args:
            folder: made if it does not exist; None for a temporary file that nobody else sees.
            run: of plain data.
            pictures: how many there are.
            classes: outputs of a picture.

        Raises:
            ValueError: the folder holds outputs of another run.
            OSError: it cannot be read or written, another process works in it, or something in it is a link.
        """
        self.run, self.done, self.failed, self.remarks = dict(run), 0, dict[int, str](), list[str]()
        self._pictures, self._classes, self._rows = pictures, classes, 0
        self._place = folder or tempfile.gettempdir()
        self._lines: IO[bytes] | None = None
        with contextlib.ExitStack() as stack:
            if folder is None:
                self._file: IO[bytes] = stack.enter_context(tempfile.TemporaryFile())
            else:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(alone_in(folder))
                self._begin(folder)
                self._file = stack.enter_context(open_own(folder / OUTPUTS, "r+b"))
                self._lines = stack.enter_context(open_own(folder / DONE, "r+b"))
                self._read(self._lines)
            self._open = stack.pop_all()

    def _begin(self, folder: Path) -> None:
        """See that the folder holds outputs of this run, or none."""
        before = noted(folder)
        if before is None:
            check_writable(folder / NOTE)
            for name in (OUTPUTS, DONE):
                (folder / name).unlink(missing_ok=True)
            with replacing(folder / NOTE) as temporary:
                temporary.write_text(json.dumps(self.run, indent=1) + "\n")
        elif before != self.run:
            names = sorted(name for name in {**before, **self.run} if before.get(name) != self.run.get(name))
            raise ValueError(
                f"{folder} holds outputs of another run, which differs in: {', '.join(names)}; name another folder, or"
                " remove this one"
            )

    def _read(self, lines: IO[bytes]) -> None:
        """What is there and whole; what comes after the first line that is not is cut off."""
        end = 0
        while line := lines.readline(MOST_LINE):
            try:
                entry = _Entry(files.loads(line) if line.endswith(b"\n") else None)
            except (ValueError, KeyError, TypeError, AttributeError):
                break
            pictures = range(self.done, min(entry.done, self._pictures))
            fits = entry.done == pictures.stop > self.done and entry.rows + len(entry.failed) == len(pictures)
            if not fits or not all(number in pictures for number in entry.failed):
                break
            if self._checksum(entry.rows) != entry.crc32:
                break
            self.failed |= entry.failed
            self.remarks += entry.remarks
            self.done, self._rows, end = entry.done, self._rows + entry.rows, end + len(line)
        lines.seek(end)
        lines.truncate()
        self._file.seek(4 * self._classes * self._rows)
        self._file.truncate()

    def _checksum(self, rows: int) -> int | None:
        """Of the next rows; None where they are not all there, or no outputs of a network."""
        found, left = 0, self._classes * rows
        while left:
            values = np.frombuffer(data := self._file.read(4 * min(left, BLOCK)), "<f4", len(data) // 4)
            if len(values) < min(left, BLOCK) or not np.isfinite(values).all():
                return None
            found, left = zlib.crc32(data, found), left - len(values)
        return found

    def add(self, rows: NDArray[np.float32], failed: Mapping[int, str], remarks: Sequence[str], done: int) -> None:
        """Write what became of the pictures from `self.done` to `done`.

        Args:
            rows: (n, classes), of those that could be read, in their order.
            failed: the others.
            remarks: on them.
            done: the number of the next picture.

        Raises:
            OSError: the disk is full.
        """
        data = np.ascontiguousarray(rows, "<f4").tobytes()
        try:
            self._file.write(data)
            self._file.flush()
            if self._lines is not None:
                os.fsync(self._file.fileno())
                entry = {"done": done, "rows": len(rows), "crc32": zlib.crc32(data)}
                words = {"failed": dict(failed), "remarks": list(remarks)}
                self._lines.write(json.dumps(entry | words).encode() + b"\n")
                self._lines.flush()
                os.fsync(self._lines.fileno())
        except OSError as error:
            raise OSError(
                f"outputs cannot be written to {self._place} ({error.strerror}); make room, and give the same command"
                " again: with --resume-folder what is finished is kept"
            ) from None
        self.failed.update(failed)
        self.remarks += remarks
        self.done, self._rows = done, self._rows + len(rows)

    def mapped(self) -> NDArray[np.float32]:
        """All rows, (n, classes), mapped from the file, which stays readable after `close`."""
        if not self._rows:
            return np.zeros((0, self._classes), np.float32)
        return np.memmap(self._file, "<f4", "r", shape=(self._rows, self._classes))

    def close(self) -> None:
        """Close the files."""
        with contextlib.suppress(OSError):  # of a full disk, which `add` has told
            self._open.close()


class _Entry:
    """A line of `done.jsonl`: of anything else it raises ValueError, KeyError, TypeError or AttributeError."""

    def __init__(self, said: Any) -> None:
        self.done, self.rows, self.crc32 = (said[name] for name in ("done", "rows", "crc32"))
        self.failed = {int(number): words for number, words in said["failed"].items()}
        self.remarks: list[str] = said["remarks"]
        numbers = (self.done, self.rows, self.crc32, 0)
        words = (*self.failed.values(), *self.remarks, "")
        if {*map(type, numbers)} != {int} or {*map(type, words)} != {str} or type(self.remarks) is not list:
            raise ValueError("it is of other kinds")
        if self.rows < 0 or len(self.failed) != len(said["failed"]):
            raise ValueError("it is of other pictures")


def noted(folder: Path) -> dict[str, Any] | None:
    """What tells the run whose outputs a folder holds from others; None where there is none, {} where none can say.

    Raises:
        OSError: the folder is none, or something in it is a link.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is not a folder; name one for the outputs")
    check_own_folder(folder)
    try:
        with open_own(folder / NOTE) as file:
            found = files.loads(file.read(MOST_NOTE).decode())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


PART = 256  # pictures that are written together, at most
EVERY = 10.0  # seconds after which those that are done are written all the same
PROBES = 2  # images that an engine answers to tell it from others


@dataclass(frozen=True)
class Running:
    """What a run cost.

    Attributes:
        computed: pictures that went through the network in this run; the others were there from one before.
        seconds: that this took, decoding and writing included.
        network_seconds: of which the network ran.
        memory: bytes that the process took at most since it began; None where the system does not say.
        device_memory: bytes of CUDA's memory that were taken at most; None on other devices.
    """

    computed: int
    seconds: float
    network_seconds: float
    memory: int | None
    device_memory: int | None

    @property
    def throughput(self) -> float | None:
        """Pictures a second; None where none was computed."""
        return self.computed / self.seconds if self.computed else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**vars(self), "pictures_per_second": self.throughput}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a network answers to pictures whose classes are known.

    Attributes:
        card: of the network.
        folder: where the pictures are.
        crops: what of each picture the network saw.
        paths: of the N pictures that could be read.
        labels: (N,) int64, their classes; or where a picture may have several labels, (N, classes) bool.
        logits: (N, classes) float32, mapped from a file; of several views one row, whose probabilities are the mean of
            theirs.
        ranked: where the truth stands among the answers; None where a picture may have several labels.
        failed: pictures that could not be read, and why; they are neither right nor wrong.
        remarks: sentences on what its reader may not expect.
        running: what it cost.
        learnt: which of the N pictures the network was trained on; None where its card does not say on which it was.
    """

    card: Card
    folder: Path
    crops: Views
    paths: tuple[Path, ...]
    labels: NDArray[Any]
    logits: NDArray[np.float32]
    ranked: Ranking | None
    failed: tuple[tuple[Path, str], ...]
    remarks: tuple[str, ...]
    running: Running
    learnt: Learnt | None = None

    @property
    def ranking(self) -> Ranking:
        """Where the truth stands among the answers.

        Raises:
            ValueError: pictures may have several labels; so do `errors`, `by_class` and all that follows from it.
        """
        if self.ranked is None:
            raise ValueError("pictures that may have several labels have no errors of one class; see `several_labels`")
        return self.ranked

    @cached_property
    def several_labels(self) -> SeveralLabels | None:
        """How well labels are told, where a picture may have several; else None."""
        return score_labels(self.logits, self.labels) if self.labels.dtype == np.bool_ else None

    @property
    def errors(self) -> tuple[ErrorRate, ...]:
        """Top-1, top-5 and top-10, as far as they leave a class out."""
        return tuple(self.ranking.error(k) for k in SIZES if k < self.card.classes)

    @property
    def by_class(self) -> tuple[ClassErrors, ...]:
        """Of each class that has pictures."""
        return errors_by_class(self.ranking, self.labels, self.card.classes)

    @property
    def balanced_error(self) -> float:
        """Mean top-1 error over the classes that have pictures, 0 to 1, whatever their numbers of pictures."""
        return float(np.mean([each.errors[1].error for each in self.by_class]))

    @property
    def confusion(self) -> NDArray[np.int64]:
        """(classes, classes): pictures of the row's class for which the column's was the most probable."""
        return confusion(self.labels, self.ranking.best[:, 0], self.card.classes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; errors are shares, 0 to 1."""
        about = {
            "network": self.card.network,
            "classes": self.card.classes,
            "folder": str(self.folder),
            "crops": self.crops,
            "pictures": len(self.labels),
            "failed": {str(path): words for path, words in self.failed},
        }
        if self.several_labels is not None:
            return {
                **about,
                **self.several_labels.to_dict(self.card),
                "running": self.running.to_dict(),
                "remarks": list(self.remarks),
            }
        original = published(self.card)
        counts = self.confusion
        pairs = np.argwhere(counts)
        return {
            **about,
            "errors": {f"top-{each.k}": each.to_dict() for each in self.errors},
            "balanced_error": self.balanced_error,
            "ties": self.ranking.ties,
            "learnt_from": self.learnt and self.learnt.to_dict(),
            "published": original
            and {"source": original.source, "errors": {f"top-{k}": each for k, each in original.errors.items()}},
            "running": self.running.to_dict(),
            "remarks": list(self.remarks),
            "by_class": [
                {
                    "class_id": each.class_id,
                    "wnid": class_wnid(self.card, each.class_id),
                    "words": class_name(self.card, each.class_id),
                    "pictures": each.count,
                    "taken": each.taken,
                    "errors": {f"top-{k}": rate.to_dict() for k, rate in each.errors.items()},
                }
                for each in self.by_class
            ],
            "confusions": [[int(truth), int(given), int(counts[truth, given])] for truth, given in pairs],
        }


def evaluate(
    network: Runnable,
    truth: GroundTruth,
    *,
    crops: Views = "center",
    batch: int | Literal["auto"] = "auto",
    workers: int | None = None,
    exact: bool = True,
    max_pixels: int | None = None,
    allow_truncated: bool = False,
    depth: Depth = None,
    background: Background = None,
    store: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Run a network on pictures and count its errors; of several labels a picture, measure how each is told.

    Outputs are kept in a file, so memory does not grow with the number of pictures. In a folder of the user's, a run
    that was cut off goes on where it was, and gives the same figures as one that was not: batches are the same ones. A
    run is known by the network's parameters, its card and device, by the options below, and by the names, sizes and
    times of change of the files. Their contents are not hashed for that: it would read all of them before the first
    answer. So labels may be corrected, and the figures follow without running anything again.

    Where the network's card says which pictures it was trained on, as `finetune` and `probe` write it, the pictures'
    contents are looked up there at the end, and a remark says how many of them it knows.

    Args:
        network: in eval mode, with its card, as `load` gives it, prepared or not; or an `engine` of one.
        truth: the pictures and their classes, as `find_truth` gives them.
        crops: as `views` of `predict`: "center" crop, "flip" (that and its mirror image), or "ten" (corners, centre,
            and their mirror images). Probabilities are averaged, as the AlexNet paper averages the softmax of ten
            patches; of outputs that are no probabilities the mean is taken.
        batch, workers, max_pixels, allow_truncated, depth, background: as in `predict`.
        exact: read every file at its whole scale, as `classify` does; False is faster, as `predict` says.
        store: a folder for the outputs, made if it does not exist; None for a temporary file.
        progress: told how many pictures of how many are done.

    Raises:
        ValueError: the network has no card, no head or one class alone, is in training mode, or its outputs are NaN or
            infinite; no picture could be read; the folder holds outputs of another run; an option is no good.
        OSError: the folder cannot be written, or the disk is full.

    Warns:
        MemoryWarning: memory ran out, and the work goes on in smaller batches.

    Source: ImageNet Classification with Deep Convolutional Neural Networks, NIPS 2012, section 4.1 (ten patches).
    """
    card = card_of(network)
    several = truth.labels.dtype == np.bool_
    if several:
        check_several(card)
    check_choice(crops, VIEWS, "crops")
    options = {"crops": crops, "exact": exact, "max_pixels": max_pixels, "allow_truncated": allow_truncated}
    options |= said_levels(depth, background)
    run = options if store is None else _identity(network, card) | options | {"files": _files(truth)}
    before = None if store is None else noted(Path(store))
    if batch == "auto":
        batch = before.get("batch", 0) if before else 0
        batch = batch if type(batch) is int and batch > 0 else batch_for(network)
    elif type(batch) is not int or batch < 1:
        raise ValueError(f"a batch of {batch!r} is none; give 1 or more, or 'auto'")
    outputs = OutputFile(None if store is None else Path(store), run | {"batch": batch}, len(truth.paths), card.classes)
    ready, clock = timed(network)
    first = outputs.done
    device = _device(network)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    with contextlib.closing(outputs):
        reading = Reading(True, max_pixels, allow_truncated, depth, background)
        rows = predicted(ready, truth.paths[first:], reading, batch=batch, workers=workers, exact=exact, views=crops)
        with contextlib.closing(rows), _Part(outputs, card.activation, together(batch, crops)) as part:
            for row in rows:
                part.add(row)
                if progress is not None:
                    progress(part.done, len(truth.paths))
        seconds = time.perf_counter() - start
        logits = outputs.mapped()
    if not len(logits):
        sentence = next(iter(outputs.failed.values()), "there are none")
        raise ValueError(f"none of {len(truth.paths)} pictures could be read; the first: {sentence}")
    good = np.array([number for number in range(len(truth.paths)) if number not in outputs.failed], np.int64)
    labels = truth.labels[good]
    ranking = None if several else rank(logits, labels)
    running = Running(
        len(truth.paths) - first,
        seconds,
        clock.seconds,
        peak_memory(),
        torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    )
    paths = tuple(truth.paths[number] for number in good)
    told = [*truth.remarks, *dict.fromkeys(outputs.remarks)]
    learnt = None
    if keeps_digests(card):
        try:
            learnt = find_learnt(card, [_digest(path) for path in paths])
            told = [*learnt.remarks, *told]
        except ValueError as error:
            told.append(str(error))
    if ranking is not None and ranking.ties:
        told.append(f"{ranking.ties} pictures give their class the output of another one to the bit; ids decide there")
    return Evaluation(
        card,
        truth.folder,
        crops,
        paths,
        labels,
        logits,
        ranking,
        tuple((truth.paths[number], words) for number, words in sorted(outputs.failed.items())),
        tuple(told),
        running,
        learnt,
    )


class _Part:
    """Rows that wait to be written; they are where the batches that go through the network end."""

    def __init__(self, outputs: OutputFile, activation: Activation, size: int) -> None:
        self._outputs, self._activation, self._size = outputs, activation, size
        self.done = outputs.done
        self._rows: list[NDArray[np.float32]] = []
        self._failed: dict[int, str] = {}
        self._remarks: list[tuple[int, str]] = []
        self._whole = (0, outputs.done)  # rows and pictures up to the end of the last batch
        self._members = self._good = 0  # of the batch that follows
        self._written = time.monotonic()

    def __enter__(self) -> _Part:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._whole = (len(self._rows), self.done)
        self._write()

    def add(self, row: Predicted) -> None:
        self._remarks += ((self.done, remark) for remark in row.remarks)
        if row.logits is None:
            self._failed[self.done] = " ".join(str(row.error).split())
        else:
            if not row.logits.isfinite().all():
                raise ValueError(
                    f"{picture_name(row.picture)}: the network's outputs are NaN or infinite: its weights are broken,"
                    " or too large for float16"
                )
            self._rows.append(averaged(row.logits, self._activation).numpy())
            self._good += 1
        self.done, self._members = self.done + 1, self._members + 1
        if is_whole(self._members, self._good, self._size):
            self._whole, self._members, self._good = (len(self._rows), self.done), 0, 0
            waits = self.done - self._outputs.done
            if waits >= PART or time.monotonic() - self._written > EVERY:
                self._write()

    def _write(self) -> None:
        rows, done = self._whole
        if done > self._outputs.done:
            failed = {number: words for number, words in self._failed.items() if number < done}
            made = np.stack(self._rows[:rows]) if rows else np.zeros((0, 1), np.float32)
            self._outputs.add(made, failed, [remark for number, remark in self._remarks if number < done], done)
            self._remarks = [(number, remark) for number, remark in self._remarks if number >= done]
            self._rows, self._whole = self._rows[rows:], (0, done)
            self._failed = {number: words for number, words in self._failed.items() if number >= done}
        self._written = time.monotonic()


def averaged(logits: Tensor, activation: Activation) -> Tensor:
    """Logits whose probabilities are the mean of those of several views; of outputs that are none, the mean.

    Args:
        logits: (classes,), which stay as they are, or (views, classes).
        activation: of the card.

    Returns:
        (classes,) float32; their softmax, or sigmoid, is the mean of the views'.

    >>> averaged(torch.tensor([[0.0, 3.0], [2.0, 0.0]]), "softmax").softmax(0)
    tensor([0.4641, 0.5359])
    >>> torch.tensor([[0.0, 3.0], [2.0, 0.0]]).softmax(1).mean(0)
    tensor([0.4641, 0.5359])
    """
    if logits.dim() == 1:
        return logits
    values = logits.double()
    if activation == "softmax":
        return values.log_softmax(1).logsumexp(0).sub(np.log(len(values))).float()
    if activation == "sigmoid":
        return (F.logsigmoid(values).logsumexp(0) - F.logsigmoid(-values).logsumexp(0)).float()
    return values.mean(0).float()


def _identity(network: Runnable, card: Card) -> dict[str, Any]:
    """What tells the outputs of one network from those of others."""
    facts: dict[str, Any] = {"version": __version__, "card": card.to_json()}
    if isinstance(network, nn.Module):
        return facts | {"network": fingerprint(network), "device": _device(network).type}
    digest = hashlib.sha256()
    if isinstance(network, Engine):  # which shows no parameters: so it is known by what it answers
        images = torch.randn(PROBES, 3, *network.size, generator=torch.Generator().manual_seed(0))
        facts |= {"engine": network.name, "precision": network.precision}
        digest.update(network(images).numpy().tobytes())
    return facts | {"network": digest.hexdigest(), "device": "cpu"}


def _files(truth: GroundTruth) -> str:
    """A hash of the pictures' names, sizes and times of change; of one that is missing, that it is."""
    digest = hashlib.sha256()
    for path in truth.paths:
        try:
            state = path.stat()
            facts = [state.st_size, state.st_mtime_ns]
        except OSError:
            facts = []
        name = path.relative_to(truth.folder) if path.is_relative_to(truth.folder) else path
        digest.update(json.dumps([name.as_posix(), *facts]).encode())
    return digest.hexdigest()


def _digest(path: Path) -> str | None:
    try:
        return sha256(path, max_bytes=MOST_BYTES)
    except (OSError, ValueError):  # it was there when the network saw it
        return None


def _device(network: Runnable) -> torch.device:
    return next(network.parameters()).device if isinstance(network, nn.Module) else torch.device("cpu")
