"""A network's outputs on disk as they come, so that memory does not grow, and a run that was cut off goes on."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from convnets_torch import strict_json
from convnets_torch.files import alone_in, check_own_folder, check_writable, open_own, replacing

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
                entry = _Entry(strict_json.loads(line) if line.endswith(b"\n") else None)
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
                " again: with --resume what is finished is kept"
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
            found = strict_json.loads(file.read(MOST_NOTE).decode())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
