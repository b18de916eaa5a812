"""Run work that changes process-wide settings where no other thread runs, in a child process if necessary.

PyTorch patches `nn.Module` while it traces for `torch.export`, and scikit-learn fits are fast and quiet only
with a single BLAS thread and other warning filters.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from convnets_torch.files import open_own

Progress = Callable[[int, int], None]

_one_at_a_time = threading.RLock()
# Packages and modules whose threads only wait, or draw progress bars.
IDLE = ("tqdm", "rich", "ipykernel", "IPython", "zmq", "lancedb", "convnets_torch.cli.ending")

# The caller's folders come last in sys.path, so that no file in a script's folder shadows an installed module.
CHILD = """
import sys
sys.path += [folder for folder in sys.argv[2:] if folder not in sys.path]
from convnets_torch.inference.child_process import serve
serve(sys.argv[1])
"""


def apart(home: str, function: str, *arguments: Any, progress: Progress | None = None) -> Any:
    """Call a function where no other thread runs.

    If this process has no other thread, call it here; otherwise in a child process, which takes some seconds to start.
    Arguments that cannot be pickled, such as modules whose class is defined in a script, are always processed here;
    other threads then see the changed settings while it runs.

    Args:
        home: the function's module.
        function: its name. Its arguments and result are pickled.
        arguments: modules, arrays and plain values.
        progress: passed to the function as `progress`; called with the amount done and the total.

    Raises:
        Whatever the function raises; RuntimeError if the child process ends without a result.
    """
    call = getattr(import_module(home), function)
    with _one_at_a_time:
        if any(map(_may_run, threading.enumerate())):
            with tempfile.TemporaryDirectory(prefix="convnets-torch-") as folder:
                try:
                    _write(Path(folder) / "call", (home, function, arguments))
                except (pickle.PicklingError, AttributeError, TypeError):
                    return call(*arguments, progress=progress)
                return _in_a_process(Path(folder), progress)
        return call(*arguments, progress=progress)


def _may_run(thread: threading.Thread) -> bool:
    """Return whether another thread may run relevant code."""
    homes = [type(thread).__module__, getattr(getattr(thread, "_target", None), "__module__", None) or ""]
    idle = any(f"{home}.".startswith(f"{name}.") for home in homes for name in IDLE)
    return thread is not threading.current_thread() and not idle


def _in_a_process(folder: Path, progress: Progress | None) -> Any:
    further = [str(Path(entry).absolute()) for entry in sys.path if entry]
    command = [sys.executable, "-I", "-c", CHILD, str(folder), str(Path(__file__).parents[2]), *further]
    with (
        (folder / "errors").open("w+b") as errors,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors) as process,
    ):
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if progress is not None:
                    progress(*map(int, line.split()))
            process.wait()
        finally:
            process.kill()
        try:
            result, error = _read(folder / "answer")
        except FileNotFoundError:
            errors.seek(0)
            words = errors.read().decode(errors="replace").strip().splitlines() or [f"exit {process.returncode}"]
            raise RuntimeError(f"the child process ended without a result: {words[-1]}") from None
    if error is not None:
        raise error
    return result


def serve(folder: str) -> None:
    """Run the call stored in a folder and write its result there; the child process's entry point."""
    progress_pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keep the output of libraries out of the progress pipe

    def progress(done: int, whole: int) -> None:
        with contextlib.suppress(BrokenPipeError):
            print(done, whole, file=progress_pipe, flush=True)

    answer: tuple[Any, Exception | None]
    try:
        home, function, arguments = _read(Path(folder) / "call")
        answer = getattr(import_module(home), function)(*arguments, progress=progress), None
    except Exception as error:
        answer = None, error.with_traceback(None)
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            answer = None, RuntimeError(f"{type(error).__name__}: {error}")
    _write(Path(folder) / "part", answer)
    (Path(folder) / "part").replace(Path(folder) / "answer")


def _write(path: Path, value: Any) -> None:
    """Pickle a value; with PyTorch's writer if torch is loaded, which stores shared tensor memory only once."""
    with path.open("wb") as file:
        if "torch" in sys.modules:
            import torch

            torch.save(value, file)
        else:
            pickle.dump(value, file)


def _read(path: Path) -> Any:
    with open_own(path, "rb") as file:
        start = file.read(2)
        file.seek(0)
        if start == b"PK":
            import torch

            return torch.load(file, weights_only=False)
        return pickle.load(file)
