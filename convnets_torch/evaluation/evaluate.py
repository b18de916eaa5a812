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
from typing_extensions import Unpack

from convnets_torch import files
from convnets_torch._version import __version__
from convnets_torch.card import Activation, Card, Learnt, find_learnt, keeps_digests
from convnets_torch.embeddings.cache import fingerprint
from convnets_torch.evaluation.labels import GroundTruth
from convnets_torch.evaluation.metrics import SIZES, ClassErrors, ErrorRate, Ranking, confusion, errors_by_class, rank
from convnets_torch.evaluation.several_labels import SeveralLabels, check_several, score_labels
from convnets_torch.files import alone_in, check_own_folder, check_writable, open_own, replacing, sha256
from convnets_torch.images.decoding import MOST_BYTES, Reading, ReadingKeywords, picture_name
from convnets_torch.images.levels import said_levels
from convnets_torch.inference.engines import Engine
from convnets_torch.inference.pipeline import (
    VIEWS,
    Predicted,
    Runnable,
    Views,
    batch_for,
    card_of,
    is_whole,
    place_of,
    predicted,
    ready_card,
    together,
)
from convnets_torch.networks import CATALOG
from convnets_torch.options import FormerAttribute, checked, shows
from convnets_torch.text import check_choice
from convnets_torch.wordnet.targets import class_name, class_wnid

SOURCE = "convnets-keras' README, Performances on ImageNet"  # of the published error rates


def published(card: Card) -> Mapping[int, float] | None:
    """Return the original's published errors, k -> top-k error, for a network with ImageNet's classes, otherwise None.

    >>> from convnets_torch.card import read_card
    >>> published(read_card("alexnet.safetensors"))[5]
    0.2009
    """
    spec = CATALOG.get(card.network)
    return spec.errors or None if card.imagenet and spec is not None else None


class _TimedEngine:
    """Wraps an engine to time its calls."""

    card: Card | None

    def __init__(self, network: Runnable, device: torch.device) -> None:
        super().__init__()
        self.card, self.training, self._network, self._device = ready_card(network), False, network, device
        self.mapped = getattr(network, "mapped", None)  # set if it returns score maps, which `predict` refuses
        self._calls: list[tuple[Any, Any]] = []

    def __call__(self, images: Tensor, /) -> Tensor:
        begin = self._now()
        found = self._network(images)
        self._calls.append((begin, self._now()))
        return found

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        return torch.cuda.current_stream(self._device).record_event(torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]

    def seconds(self) -> float:
        """Return the total time of the calls. CUDA calls are asynchronous, so events measure them."""
        if self._device.type != "cuda":
            return sum(end - begin for begin, end in self._calls)
        torch.cuda.synchronize(self._device)
        return sum(begin.elapsed_time(end) for begin, end in self._calls) / 1000


class _TimedNetwork(_TimedEngine, nn.Module):
    """Wraps a network to time its calls; shares the network's parameters."""


def peak_memory() -> int | None:
    """Return the peak resident memory of this process in bytes, or None if it is unknown."""
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
MOST_NOTE = 1 << 24  # maximum bytes of `run.json`: enough for 100,000 class names
MOST_LINE = 1 << 26  # maximum bytes of a line of `done.jsonl`, which holds the errors of unreadable pictures
BLOCK = 1 << 20  # values in a chunk of the checksum


class OutputFile:
    """An append-only file of outputs, one row for each readable picture.

    Each line of `done.jsonl` covers a chunk of pictures: which of them could not be read, and the checksum of the rows
    of the others. It is written after the rows are synced to disk. So if the process is killed at any moment, every
    line has its complete rows, and rows without a line are dropped.

    Attributes:
        run: identifies the run.
        done: number of pictures finished.
        failed: index of a picture -> why it could not be used.
        notes: on the pictures that could be used, in order.
    """

    def __init__(self, folder: Path | None, run: Mapping[str, Any], pictures: int, classes: int) -> None:
        """Start or resume the run that the JSON data `run` identify, in a folder or, if it is None, a temporary file.

        Raises:
            ValueError: the folder holds outputs of another run.
            OSError: the folder cannot be read or written, is in use by another process, or contains a link.
        """
        self.run, self.done, self.failed, self.notes = dict(run), 0, dict[int, str](), list[str]()
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
        """Check that the folder is empty or holds outputs of this run."""
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
        """Read the complete chunks; truncate both files after the last of them."""
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
            self.notes += entry.notes
            self.done, self._rows, end = entry.done, self._rows + entry.rows, end + len(line)
        lines.seek(end)
        lines.truncate()
        self._file.seek(4 * self._classes * self._rows)
        self._file.truncate()

    def _checksum(self, rows: int) -> int | None:
        """CRC-32 of the next rows; None if rows are missing or not finite."""
        found, left = 0, self._classes * rows
        while left:
            values = np.frombuffer(data := self._file.read(4 * min(left, BLOCK)), "<f4", len(data) // 4)
            if len(values) < min(left, BLOCK) or not np.isfinite(values).all():
                return None
            found, left = zlib.crc32(data, found), left - len(values)
        return found

    def add(self, rows: NDArray[np.float32], failed: Mapping[int, str], notes: Sequence[str], done: int) -> None:
        """Append the results of the pictures from `self.done` up to, but not including, `done`.

        `rows` are the outputs (n, classes) of the readable ones in order, `failed` has the errors of the others.
        """
        data = np.ascontiguousarray(rows, "<f4").tobytes()
        try:
            self._file.write(data)
            self._file.flush()
            if self._lines is not None:
                os.fsync(self._file.fileno())
                entry = {"done": done, "rows": len(rows), "crc32": zlib.crc32(data)}
                words = {"failed": dict(failed), "remarks": list(notes)}
                self._lines.write(json.dumps(entry | words).encode() + b"\n")
                self._lines.flush()
                os.fsync(self._lines.fileno())
        except OSError as error:
            raise OSError(
                f"outputs cannot be written to {self._place} ({error.strerror}); free some space and run the same"
                " command again: with --resume-folder, finished pictures are kept"
            ) from None
        self.failed.update(failed)
        self.notes += notes
        self.done, self._rows = done, self._rows + len(rows)

    def mapped(self) -> NDArray[np.float32]:
        """Return all rows, (n, classes), memory-mapped; they stay readable after `close`."""
        if not self._rows:
            return np.zeros((0, self._classes), np.float32)
        return np.memmap(self._file, "<f4", "r", shape=(self._rows, self._classes))

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of a full disk, which `add` already reported
            self._open.close()


class _Entry:
    """A line of `done.jsonl`; invalid data raise ValueError, KeyError, TypeError or AttributeError."""

    def __init__(self, said: Any) -> None:
        self.done, self.rows, self.crc32 = (said[name] for name in ("done", "rows", "crc32"))
        self.failed = {int(number): words for number, words in said["failed"].items()}
        self.notes: list[str] = said["remarks"]
        numbers = (self.done, self.rows, self.crc32, 0)
        words = (*self.failed.values(), *self.notes, "")
        if {*map(type, numbers)} != {int} or {*map(type, words)} != {str} or type(self.notes) is not list:
            raise ValueError("a value has the wrong type")
        if self.rows < 0 or len(self.failed) != len(said["failed"]):
            raise ValueError("rows are negative or a failed picture is listed twice")


def noted(folder: Path) -> dict[str, Any] | None:
    """Return the identity of the run whose outputs a folder holds: None if there is no run, {} if it is unreadable.

    Raises:
        OSError: `folder` is not a folder, or it contains a link.
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


PART = 256  # buffered pictures that trigger a write
EVERY = 10.0  # seconds after which finished pictures are written even if they are fewer
PROBES = 2  # random images whose outputs identify an engine


@dataclass(frozen=True)
class Running:
    """Time and memory of a run.

    Attributes:
        computed: pictures that went through the network in this run; the others came from an earlier run.
        seconds: wall-clock time, including decoding and writing.
        network_seconds: time spent in the network.
        memory: peak memory of the process in bytes; None if the system does not report it.
        device_memory: peak CUDA memory in bytes; None on other devices.
    """

    computed: int
    seconds: float
    network_seconds: float
    memory: int | None
    device_memory: int | None

    @property
    def throughput(self) -> float | None:
        """Pictures per second; None if none was computed."""
        return self.computed / self.seconds if self.computed else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**vars(self), "pictures_per_second": self.throughput}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Outputs of a network for labelled pictures, and metrics derived from them.

    Attributes:
        card: of the network.
        folder: of the pictures.
        crops: which crops of each picture the network saw.
        paths: the N pictures that could be read.
        labels: (N,) int64 class ids; or (N, classes) bool for multi-label data.
        logits: (N, classes) float32, memory-mapped. Several views of a picture give one row, whose probabilities are
            the mean of the views'.
        ranked: rank of the true class of each picture; None for multi-label data.
        failed: unreadable pictures and their errors; they count as neither right nor wrong.
        notes: for the reader, such as unusual data.
        running: time and memory.
        learnt: which of the N pictures the network was trained on; None if its card does not record them.
    """

    card: Card
    folder: Path
    crops: Views
    paths: tuple[Path, ...]
    labels: NDArray[Any]
    logits: NDArray[np.float32]
    ranked: Ranking | None
    failed: tuple[tuple[Path, str], ...]
    notes: tuple[str, ...]
    running: Running
    learnt: Learnt | None = None
    remarks = FormerAttribute("notes")

    @property
    def ranking(self) -> Ranking:
        """Rank of the true class of each picture.

        Raises:
            ValueError: the data are multi-label. `errors`, `by_class` and all that depend on them raise it too.
        """
        if self.ranked is None:
            raise ValueError("multi-label pictures have no single true class, so no error rates; see `several_labels`")
        return self.ranked

    @cached_property
    def several_labels(self) -> SeveralLabels | None:
        """Metrics of multi-label data; None for other data."""
        return score_labels(self.logits, self.labels) if self.labels.dtype == np.bool_ else None

    @property
    def errors(self) -> tuple[ErrorRate, ...]:
        """Top-1, top-5 and top-10 error, as far as k is below the number of classes."""
        return tuple(self.ranking.error(k) for k in SIZES if k < self.card.classes)

    @property
    def by_class(self) -> tuple[ClassErrors, ...]:
        """Errors of each class that has pictures."""
        return errors_by_class(self.ranking, self.labels, self.card.classes)

    @property
    def balanced_error(self) -> float:
        """Unweighted mean of the top-1 errors of the classes that have pictures, 0 to 1."""
        return float(np.mean([each.errors[1].error for each in self.by_class]))

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Confusion matrix (classes, classes): true class in rows, predicted class in columns."""
        return confusion(self.labels, self.ranking.best[:, 0], self.card.classes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; errors are fractions, 0 to 1."""
        about = {
            "network": self.card.network,
            "classes": self.card.classes,
            "folder": str(self.folder),
            "crops": self.crops,
            "pictures": len(self.labels),
            "failed": {str(path): words for path, words in self.failed},
        }
        rest = {"running": self.running.to_dict(), "remarks": list(self.notes)}
        if self.several_labels is not None:
            return about | self.several_labels.to_dict(self.card) | rest
        original = published(self.card)
        counts = self.confusion
        pairs = np.argwhere(counts)
        return {
            **about,
            "errors": {f"top-{each.k}": each.to_dict() for each in self.errors},
            "balanced_error": self.balanced_error,
            "ties": self.ranking.ties,
            "learnt_from": self.learnt and self.learnt.to_dict(),
            "published": original and {"source": SOURCE, "errors": {f"top-{k}": each for k, each in original.items()}},
            **rest,
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


@shows(ReadingKeywords, Reading)
def evaluate(
    network: Runnable,
    truth: GroundTruth,
    *,
    crops: Views = "center",
    batch: int | Literal["auto"] = "auto",
    workers: int | None = None,
    exact: bool = True,
    store: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    **reading: Unpack[ReadingKeywords],
) -> Evaluation:
    """Run a network on labelled pictures and measure its errors, or its per-label metrics for multi-label data.

    Outputs are kept in a file, so memory does not grow with the number of pictures. With `store`, an interrupted run
    resumes where it stopped and gives the same figures as an uninterrupted one, because it uses the same batches. A run
    is identified by the network's parameters, card and device, the options below, and the names, sizes and modification
    times of the files. File contents are not hashed, since that would read every file before the first result. Labels
    are not part of the identity: after correcting them, metrics are recomputed without running the network again.

    If the network's card records its training pictures, as `finetune` and `probe` do, the contents of the pictures are
    looked up there at the end, and a note says how many of them the network was trained on.

    Args:
        network: in eval mode, with its card, as `load` returns it, prepared or not; or an `engine` of one.
        truth: the pictures and their classes, as `find_truth` returns them.
        crops: as `views` of `predict`: "center" crop, "flip" (that and its mirror image), or "ten" (corners, centre,
            and their mirror images). Probabilities are averaged, as the AlexNet paper averages the softmax of ten
            patches; outputs that are not probabilities are averaged directly.
        batch, workers: as in `predict`.
        exact: decode every file at full resolution, as `classify` does; False is faster, see `predict`.
        store: a folder for the outputs, created if missing; None for a temporary file.
        progress: called with the number of finished pictures and the total.
        reading: as for `read_picture`.

    Raises:
        ValueError: the network has no card, no head or only one class, is in training mode, or gives NaN or infinite
            outputs; no picture could be read; the folder holds outputs of another run; an option is invalid.
        OSError: the folder cannot be written, or the disk is full.

    Warns:
        MemoryWarning: memory ran out, and the run continues with smaller batches.

    Source: ImageNet Classification with Deep Convolutional Neural Networks, NIPS 2012, section 4.1 (ten patches).
    """
    card = card_of(network)
    several = truth.labels.dtype == np.bool_
    if several:
        check_several(card)
    check_choice(crops, VIEWS, "crops")
    how = Reading(**checked(reading, ReadingKeywords))
    options = {"crops": crops, "exact": exact, "max_pixels": how.max_pixels, "allow_truncated": how.allow_truncated}
    options |= said_levels(how.depth, how.background)
    run = options if store is None else _identity(network, card) | options | {"files": _files(truth)}
    before = None if store is None else noted(Path(store))
    if batch == "auto":
        batch = before.get("batch", 0) if before else 0
        batch = batch if type(batch) is int and batch > 0 else batch_for(network)
    elif type(batch) is not int or batch < 1:
        raise ValueError(f"batch must be a positive integer or 'auto', got {batch!r}")
    outputs = OutputFile(None if store is None else Path(store), run | {"batch": batch}, len(truth.paths), card.classes)
    device, _ = place_of(network)
    timed = (_TimedNetwork if isinstance(network, nn.Module) else _TimedEngine)(network, device)
    first = outputs.done
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    with contextlib.closing(outputs):
        rows = predicted(timed, truth.paths[first:], how, batch=batch, workers=workers, exact=exact, views=crops)
        with contextlib.closing(rows), _RowBuffer(outputs, card.activation, together(batch, crops)) as part:
            for row in rows:
                part.add(row)
                if progress is not None:
                    progress(part.done, len(truth.paths))
        seconds = time.perf_counter() - start
        logits = outputs.mapped()
    running = Running(
        len(truth.paths) - first,
        seconds,
        timed.seconds(),
        peak_memory(),
        torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    )
    return evaluation_of(card, truth, logits, outputs.failed, outputs.notes, running, crops)


def evaluation_of(
    card: Card,
    truth: GroundTruth,
    logits: NDArray[np.float32],
    failed: Mapping[int, str],
    notes: Sequence[str],
    running: Running,
    crops: Views = "center",
) -> Evaluation:
    """Measure outputs that were computed before.

    Args:
        card: of the network.
        truth: the pictures and their classes.
        logits: (n, classes) float32, of the pictures that could be used, in order.
        failed: index of a picture -> why it could not be used.
        notes: on the pictures that could be used.
        running, crops: as in `Evaluation`.

    Raises:
        ValueError: no picture could be used.
    """
    if not len(logits):
        reason = next(iter(failed.values()), "there are none")
        raise ValueError(f"none of {len(truth.paths)} pictures could be read; the first: {reason}")
    good = np.array([number for number in range(len(truth.paths)) if number not in failed], np.int64)
    labels = truth.labels[good]
    ranking = None if truth.labels.dtype == np.bool_ else rank(logits, labels)
    paths = tuple(truth.paths[number] for number in good)
    notes = [*truth.notes, *dict.fromkeys(notes)]
    learnt = None
    if keeps_digests(card):
        try:
            learnt = find_learnt(card, [_digest(path) for path in paths])
            notes = [*learnt.notes, *notes]
        except ValueError as error:
            notes.append(str(error))
    if ranking is not None and ranking.ties:
        notes.append(f"{ranking.ties} pictures have a tie of their true class with another; the lower id ranks first")
    return Evaluation(
        card,
        truth.folder,
        crops,
        paths,
        labels,
        logits,
        ranking,
        tuple((truth.paths[number], words) for number, words in sorted(failed.items())),
        tuple(notes),
        running,
        learnt,
    )


class _RowBuffer:
    """Buffered rows; flushed at batch boundaries."""

    def __init__(self, outputs: OutputFile, activation: Activation, size: int) -> None:
        self._outputs, self._activation, self._size = outputs, activation, size
        self._pictures: list[tuple[NDArray[np.float32] | None, str, tuple[str, ...]]] = []  # outputs, error, notes
        self._whole = 0  # pictures up to the end of the last complete batch
        self._members = self._good = 0  # pictures, and readable ones, of the current batch
        self._written = time.monotonic()

    def __enter__(self) -> _RowBuffer:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._whole = len(self._pictures)
        self._write()

    @property
    def done(self) -> int:
        return self._outputs.done + len(self._pictures)

    def add(self, row: Predicted) -> None:
        outputs = None
        if row.logits is not None:
            if not row.logits.isfinite().all():
                raise ValueError(
                    f"{picture_name(row.picture)}: the network's outputs are NaN or infinite: its weights are broken,"
                    " or too large for float16"
                )
            outputs = averaged(row.logits, self._activation).numpy()
            self._good += 1
        self._pictures.append((outputs, " ".join(str(row.error).split()), row.notes))
        self._members += 1
        if is_whole(self._members, self._good, self._size):
            self._whole, self._members, self._good = len(self._pictures), 0, 0
            if self._whole >= PART or time.monotonic() - self._written > EVERY:
                self._write()

    def _write(self) -> None:
        if some := self._pictures[: self._whole]:
            first = self._outputs.done
            rows = [outputs for outputs, _, _ in some if outputs is not None]
            failed = {number: error for number, (outputs, error, _) in enumerate(some, first) if outputs is None}
            notes = [note for _, _, found in some for note in found]
            made = np.stack(rows) if rows else np.zeros((0, 1), np.float32)
            self._outputs.add(made, failed, notes, first + len(some))
            self._pictures, self._whole = self._pictures[len(some) :], 0
        self._written = time.monotonic()


def averaged(logits: Tensor, activation: Activation) -> Tensor:
    """Return logits whose probabilities are the mean over several views; with activation "none", the mean output.

    Args:
        logits: (classes,), returned unchanged, or (views, classes).
        activation: of the card.

    Returns:
        (classes,) float32; their softmax or sigmoid is the mean of the views'.

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
    """Data that identify the network, its card and its device."""
    facts: dict[str, Any] = {"version": __version__, "card": card.to_json()}
    if isinstance(network, nn.Module):
        return facts | {"network": fingerprint(network), "device": place_of(network)[0].type}
    digest = hashlib.sha256()
    if isinstance(network, Engine):  # parameters are not accessible, so its outputs identify it
        images = torch.randn(PROBES, network.channels, *network.size, generator=torch.Generator().manual_seed(0))
        facts |= {"engine": network.name, "precision": network.precision}
        digest.update(network(images).numpy().tobytes())
    return facts | {"network": digest.hexdigest(), "device": "cpu"}


def _files(truth: GroundTruth) -> str:
    """Hash of each picture's name, size and mtime; a missing file hashes as missing."""
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
    except (OSError, ValueError):  # the file changed after the network read it
        return None
