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

from convnets_torch.files import check_writable, replacing

NOTE, OUTPUTS, DONE = "run.json", "outputs.f32", "done.jsonl"


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

    def __init__(self, folder: Path | None, run: Mapping[str, Any], classes: int) -> None:
        """Begin, or go on.

        Args:
            folder: made if it does not exist; None for a temporary file that nobody else sees.
            run: of plain data.
            classes: outputs of a picture.

        Raises:
            ValueError: the folder holds outputs of another run.
            OSError: it cannot be read or written.
        """
        self.run, self.done, self.failed, self.remarks = dict(run), 0, dict[int, str](), list[str]()
        self._classes, self._rows = classes, 0
        self._lines: IO[bytes] | None = None
        if folder is None:
            self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
            return
        folder.mkdir(parents=True, exist_ok=True)
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
        for name in (OUTPUTS, DONE):
            (folder / name).touch()
        self._file = (folder / OUTPUTS).open("r+b")
        self._lines = (folder / DONE).open("r+b")
        self._read(self._lines)

    def _read(self, lines: IO[bytes]) -> None:
        """What is there and whole; what comes after the first line that is not is cut off."""
        end = 0
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                entry = json.loads(line) if line.endswith(b"\n") else {}
                data = self._file.read(4 * self._classes * entry["rows"])
                if len(data) == 4 * self._classes * entry["rows"] and zlib.crc32(data) == entry["crc32"]:
                    failed = {int(number): str(words) for number, words in entry["failed"].items()}
                    self.remarks += map(str, entry["remarks"])
                    self.failed |= failed
                    self.done, self._rows, end = entry["done"], self._rows + entry["rows"], end + len(line)
                    continue
            break
        lines.seek(end)
        lines.truncate()
        self._file.seek(4 * self._classes * self._rows)
        self._file.truncate()

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
        self._file.write(data)
        self._file.flush()
        if self._lines is not None:
            os.fsync(self._file.fileno())
            entry = {"done": done, "rows": len(rows), "crc32": zlib.crc32(data)}
            words = {"failed": dict(failed), "remarks": list(remarks)}
            self._lines.write(json.dumps(entry | words).encode() + b"\n")
            self._lines.flush()
            os.fsync(self._lines.fileno())
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
        self._file.close()
        if self._lines is not None:
            self._lines.close()


def noted(folder: Path) -> dict[str, Any] | None:
    """What tells the run whose outputs a folder holds from others; None where there is none, {} where none can say."""
    try:
        found = json.loads((folder / NOTE).read_text())
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise NotADirectoryError(f"{folder} is not a folder; name one for the outputs") from None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
