"""Work that PyTorch can do only where nothing else runs: it follows modules by changing `nn.Module` for the process."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tempfile
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

_one_at_a_time = threading.RLock()

# Modules are looked for beside Python's own first, so that no file in the folder of a script takes the place of one.
CHILD = """
import sys
sys.path += [folder for folder in sys.argv[2:] if folder not in sys.path]
from convnets_torch.apart import serve
serve(sys.argv[1])
"""
REFUSALS = {error.__name__: error for error in (ValueError, ImportError, OSError, MemoryError)}


def apart(home: str, function: str, *arguments: Any) -> Any:
    """Call a function where no other thread runs PyTorch.

    If this process has no other thread, that is here; otherwise in a process of its own, which takes some seconds to
    start. Arguments that cannot be given to another process, such as modules whose class is defined in a script, are
    worked on here in any case; then other threads must not run PyTorch.

    Args:
        home: the module of the function.
        function: its name; it returns what JSON can hold, and writes the rest to files.
        arguments: modules and plain values.

    Raises:
        whatever the function raises; a RuntimeError that names it, where it is neither ValueError, ImportError, OSError
        nor MemoryError and was raised in the other process.
    """
    call = getattr(import_module(home), function)
    with _one_at_a_time:
        if threading.active_count() == 1:
            return call(*arguments)
        with tempfile.TemporaryDirectory(prefix="convnets-torch-") as folder:
            try:
                torch.save((home, function, arguments), Path(folder) / "call")
            except (pickle.PicklingError, AttributeError, TypeError):
                return call(*arguments)
            return _in_a_process(Path(folder))


def _in_a_process(folder: Path) -> Any:
    further = [str(Path(entry).absolute()) for entry in sys.path if entry]
    command = [sys.executable, "-I", "-c", CHILD, str(folder), str(Path(__file__).parents[1]), *further]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    try:
        answer = json.loads((folder / "answer").read_bytes())
    except FileNotFoundError:
        words = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise RuntimeError(f"the process that was started for it ended without an answer: {words[0]}") from None
    if "error" in answer:
        kind, words = answer["error"]
        raise REFUSALS[kind](*words) if kind in REFUSALS else RuntimeError(f"{kind}: {words[-1]}")
    return answer["result"]


def serve(folder: str) -> None:
    """What the other process does: the call that lies in a folder, whose answer goes there as well."""
    try:
        home, function, arguments = torch.load(Path(folder) / "call", weights_only=False)
        answer: dict[str, Any] = {"result": getattr(import_module(home), function)(*arguments)}
    except Exception as error:
        known = next((kind for kind in type(error).__mro__ if kind.__name__ in REFUSALS), type(error))
        words = [error.errno, error.strerror] if isinstance(error, OSError) and error.errno else [str(error)]
        answer = {"error": (known.__name__, words)}
    written = Path(folder) / "answer.part"
    written.write_text(json.dumps(answer), encoding="utf-8")
    written.replace(Path(folder) / "answer")
