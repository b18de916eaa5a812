"""What commands say on stderr: errors and warnings, one line each."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import IO, Any

from convnets_torch.sentences import printable, shortened


def one_line(error: Warning | Exception) -> str:
    """An error as one sentence, without Python's error numbers."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


def say(sentence: str) -> None:
    """One line on stderr, under our name."""
    print(ours(sentence), file=sys.stderr)


def ours(sentence: str) -> str:
    """A sentence under our name; a file's text in it cannot steer the terminal."""
    return printable(shortened(f"convnets-torch: {sentence}"))


def show(line: str, file: IO[str] | None = None) -> None:
    """One line on stdout, or in `file`; a file's text in it cannot steer the terminal."""
    print(printable(line), file=file)


@contextlib.contextmanager
def all_warnings_as_lines() -> Iterator[None]:
    """Print whatever Python would warn of as one line."""
    with warnings.catch_warnings():
        warnings.showwarning = _say_warning
        yield


def _say_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    say(one_line(message) if isinstance(message, Warning) else message)


@contextlib.contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Print what is said about pictures, memory and speed, by the library and by Pillow, as one line each."""
    from convnets_torch.embeddings.maps import MapWarning
    from convnets_torch.explain.gradcam import CamWarning
    from convnets_torch.fitting import MemoryWarning
    from convnets_torch.images import PictureWarning
    from convnets_torch.runtime import RuntimeRemark

    with warnings.catch_warnings():
        warnings.simplefilter("always", PictureWarning)
        for kind in (MemoryWarning, RuntimeRemark, CamWarning, MapWarning):
            warnings.simplefilter("always", kind)
        warnings.showwarning = _say_warning
        yield
