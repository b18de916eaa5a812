"""What commands say on stderr: errors and warnings, one line each."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator

from convnets_torch.sentences import printable


def one_line(error: Warning | Exception) -> str:
    """An error as one sentence, without Python's error numbers."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split())


def say(sentence: str) -> None:
    """One line on stderr, under our name; a file's text in it cannot steer the terminal."""
    print(f"convnets-torch: {printable(sentence)}", file=sys.stderr)


@contextlib.contextmanager
def remarks_as_lines() -> Iterator[None]:
    """Print what is said about files and indexes as one line each; it needs no torch."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: say(one_line(message) if isinstance(message, Warning) else message)
        yield


@contextlib.contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Print what is said about pictures, memory and speed, by the library and by Pillow, as one line each."""
    from convnets_torch.embeddings.maps import MapWarning
    from convnets_torch.explain.gradcam import CamWarning
    from convnets_torch.fitting import MemoryWarning
    from convnets_torch.images import PictureWarning
    from convnets_torch.runtime import RuntimeRemark

    with remarks_as_lines():
        warnings.simplefilter("always", PictureWarning)
        for kind in (MemoryWarning, RuntimeRemark, CamWarning, MapWarning):
            warnings.simplefilter("always", kind)
        yield
