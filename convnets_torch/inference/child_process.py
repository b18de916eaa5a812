"""Work that changes settings of the process: done where nothing else runs, in a process of its own if need be.

PyTorch follows modules for `torch.export` by changing `nn.Module`, and fits of scikit-learn are quick and quiet only
with one thread of BLAS and other filters of warnings.
"""

from __future__ import annotations

import contextlib
import io
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
# Packages and modules whose threads wait, or draw bars.
IDLE = ("tqdm", "rich", "ipykernel", "IPython", "zmq", "lancedb", "convnets_torch.cli.ending")

# Modules are looked for beside Python's own first, so that no file in the folder of a script takes the place of one.
CHILD = """
import sys
sys.path += [folder for folder in sys.argv[2:] if folder not in sys.path]
from convnets_torch.inference.child_process import serve
serve(sys.argv[1])
"""


def apart(home: str, function: str, *arguments: Any, progress: Progress | None = None) -> Any:
    """Call a function where no other thread runs.

    If this process has no other thread, that is here; otherwise in a process of its own, which takes some seconds to
    start. Arguments that cannot be given to another process, such as modules whose class is defined in a script, are
    worked on here in any case; then what the function changes holds for other threads while it runs.

    Args:
        home: the module of the function.
        function: its name. What it is given and returns is pickled.
        arguments: modules, arrays and plain values.
        progress: given to the function as `progress`, which says how much of how much is done.

    Raises:
        what the function raises; RuntimeError where the other process ends without an answer.
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
    """Whether another thread may run anything that matters here."""
    homes = [type(thread).__module__, getattr(getattr(thread, "_target", None), "__module__", None) or ""]
    idle = any(f"{home}.".startswith(f"{name}.") for home in homes for name in IDLE)
    return thread is not threading.current_thread() and not idle


def _in_a_process(folder: Path, progress: Progress | None) -> Any:
    further = [str(Path(entry).absolute()) for entry in sys.path if entry]
    command = [sys.executable, "-I", "-c", CHILD, str(folder), str(Path(__file__).parents[2]), *further]
    with (
        (folder / "said").open("w+b") as said,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=said) as process,
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
            said.seek(0)
            words = said.read().decode(errors="replace").strip().splitlines() or [f"exit {process.returncode}"]
            raise RuntimeError(f"the process that was started for it ended without an answer: {words[-1]}") from None
    if error is not None:
        raise error
    return result


def serve(folder: str) -> None:
    """What the other process does: the call that lies in a folder, whose answer goes there as well."""
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no progress

    def progress(done: int, whole: int) -> None:
        with contextlib.suppress(BrokenPipeError):
            print(done, whole, file=told, flush=True)

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
    """Pickle a value; with PyTorch's own writer where that is loaded, which writes shared memory of tensors once."""
    with path.open("wb") as file:
        if "torch" in sys.modules:
            import torch

            torch.save(value, file)
        else:
            pickle.dump(value, file)


def _read(path: Path) -> Any:
    with open_own(path, "rb") as file:
        if file.read(2) == b"PK":
            import torch

            file.seek(0)
            return torch.load(file, weights_only=False)
        file.seek(0, io.SEEK_SET)
        return pickle.load(file)
