"""Read files from strangers in a process of its own, with limits on its time and memory.

libhdf5 itself can crash or run forever over a damaged file. A child does all that touches such a file and tells what
it found as JSON; when it dies, the parent says so in a sentence.

Starting an interpreter for each file would cost some tenths of a second, and forking this process would copy the locks
that its threads hold. So the interpreter that is started, which has h5py and NumPy, no torch and one thread, forks a
fresh worker for each file in milliseconds. When no file is being read, it waits for the next one; it ends with this
process. Where a forked process may not use the system's numerical library (macOS), it reads one file and ends. On
Windows everything is read in the calling process.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from importlib.machinery import PathFinder
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar, NoReturn

Call = Callable[..., Any]  # call("read", path=...) -> what the task of that name returns

SECONDS = 3  # of processor time for one call, and 1 more for each
BYTES_A_SECOND = 10_000_000  # of the file
WAIT = 60  # seconds that a call may take by the clock for each second of processor time
MEMORY = 400_000_000  # bytes that a call may take beyond what the fresh child has
HDF5_TASKS = ("read", "fill", "forward", "audit")
MOST_IDLE = 4  # interpreters that wait for the next file
SIGNALLED = 128  # plus its number: the exit code where a signal ended a worker
PROOF = {"seconds": 60, "memory": 10}  # times as much for the proof, which computes
# The first thing that a new interpreter runs. It is started isolated: neither the current folder, which may be full of
# somebody's modules, nor PYTHON* variables say where modules lie. These two packages are taken from where they are
# here, and nothing else from there.
START = """
import sys
home, *further = sys.argv[1:]
sys.path += [folder for folder in further if folder not in sys.path]
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
for name in ("convnets_torch", "converters"):
    spec = PathFinder.find_spec(name, [home])
    sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
from converters.readers import process
process.serve(forks={forks})
"""
NEEDED = ("numpy", "h5py", "lazy_loader")  # in the user's own packages or on PYTHONPATH, perhaps
FORKS = sys.platform.startswith("linux")  # macOS lets no forked process use its numerical library
ENVIRONMENT = {
    **dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "HDF5_PLUGIN_PRELOAD": "::",  # no file has libhdf5 load a library for a filter of its own
}
REFUSALS: dict[str, type[Exception]] = {
    error.__name__: error
    for error in (FileNotFoundError, IsADirectoryError, PermissionError, OSError, ValueError, ImportError)
}


@contextlib.contextmanager
def reading_process(*, isolated: bool = True) -> Iterator[Call]:
    """Start a process that reads files, and give a function that runs one of its tasks (`_tasks`).

    Args:
        isolated: False runs the tasks here.

    Returns:
        `call(task, **arguments)`; arguments and results are what JSON can hold, `path` among them.

    Raises (by `call`):
        OSError, ValueError: what the task raised.
        ValueError: the process crashed, took too long or too much memory over the file.
    """
    if not isolated or os.name == "nt":
        yield _here
        return
    reader = _Reader.take()
    try:
        yield reader.call
    finally:
        reader.give_back()


def _here(task: str, **arguments: Any) -> Any:
    return _tasks()[task](**arguments)


class _Reader:
    """An interpreter that forks a worker for each file, or that is the worker of one file."""

    idle: ClassVar[deque[_Reader]] = deque()

    def __init__(self) -> None:
        flags = ["-I", "-X", f"utf8={sys.flags.utf8_mode}", *(["-B"] if sys.dont_write_bytecode else [])]
        home = str(Path(__file__).resolve().parents[2])
        command = [sys.executable, *flags, "-c", START.format(forks=FORKS), home, *_further_folders()]
        ours, theirs = socket.socketpair()
        with theirs:  # in a session of its own, so that workers can be killed with it
            self.process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=os.environ | ENVIRONMENT,
                start_new_session=True,
            )
        self.connection = Connection(ours.detach())
        self.owner = os.getpid()
        self.busy = False  # whether an answer is outstanding
        atexit.register(self.end)

    @classmethod
    def take(cls) -> _Reader:
        """One that waits, or a new one; it is told to begin a file."""
        reader = None
        while reader is None and cls.idle:
            with contextlib.suppress(IndexError):  # another thread was faster
                found = cls.idle.pop()
                # A process that was forked from this one must not talk to its parent's.
                reader = found if found.owner == os.getpid() and found.process.poll() is None else None
        reader = reader or cls()
        with contextlib.suppress(OSError):  # it died this moment, which the first call says
            reader.connection.send_bytes(b"")
        return reader

    def give_back(self) -> None:
        """End the worker, and keep the interpreter for the next file where it can fork another."""
        if self.busy or not FORKS or len(self.idle) >= MOST_IDLE:
            self.end()
        else:
            with contextlib.suppress(OSError):
                self.connection.send_bytes(b"")
            self.idle.append(self)

    def end(self) -> None:
        if self.owner != os.getpid():
            return
        atexit.unregister(self.end)
        self.connection.close()  # it reads the end of its orders, and ends
        if self.busy:
            self.kill()
        self.process.wait()

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def call(self, task: str, **arguments: Any) -> Any:
        path = Path(arguments["path"])
        size = path.stat().st_size if path.is_file() else 0
        seconds = SECONDS + math.ceil(size / BYTES_A_SECOND)
        memory = MEMORY + (size if task == "fill tensors" else 0)  # whose tensors are read as a whole
        if task == "forward":
            seconds, memory = seconds * PROOF["seconds"], memory * PROOF["memory"]
        order = {"task": task, "arguments": arguments, "folder": str(Path.cwd()), "seconds": seconds, "memory": memory}
        self.busy = True
        try:
            self.connection.send_bytes(json.dumps(order).encode())
            if not self.connection.poll(WAIT * seconds):
                self.kill()
                raise ValueError(
                    f"{path} was not read after {WAIT * seconds} s; copy it to a local disk, or download it again"
                )
            answer = json.loads(self.connection.recv_bytes())
        except (EOFError, OSError):
            what = "the HDF5 library" if task in HDF5_TASKS else "the reader"
            raise _death(path, self.process.wait(), seconds, what) from None
        self.busy = False
        if "bug" in answer:
            raise RuntimeError(f"reading {path} failed in its own process:\n{answer['bug']}")
        if "error" in answer:
            raise REFUSALS[answer["error"]](answer["sentence"])
        return answer["result"]


def _further_folders() -> list[str]:
    """Where this process has the packages that readers need, for an interpreter that does not find them by itself."""
    here = Path.cwd()
    places = [entry for entry in sys.path if Path(entry).is_absolute()]
    places.sort(key=lambda entry: Path(entry) == here)  # the current folder is asked last, and never as ""
    found = []
    for name in NEEDED:
        spec = sys.modules[name].__spec__ if name in sys.modules else PathFinder.find_spec(name, places)
        if spec is not None and spec.origin is not None and spec.submodule_search_locations:
            found.append(str(Path(spec.origin).parent.parent))
    return list(dict.fromkeys(found))


def _death(path: Path, code: int, seconds: int, what: str) -> Exception:
    number = -code if code < 0 else code - SIGNALLED
    if number == signal.SIGXCPU:
        return ValueError(f"{path} keeps {what} busy for more than {seconds} s; it is damaged, download it again")
    if number > 0:
        name = signal.Signals(number).name
        return ValueError(f"{path} crashes {what} ({name}); it is damaged, download it again")
    return RuntimeError(f"the process that reads {path} ended with exit code {code}")


# What runs in the interpreter that is started


def serve(*, forks: bool) -> None:
    """Have a worker serve for each beginning that arrives, until the other end is closed; end as the worker does."""
    tasks = _tasks()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to answer
    connection = Connection(os.dup(0))
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            connection.recv_bytes()
            worker = os.fork() if forks else 0
            if worker == 0:
                _work(connection, tasks)
            code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
            if code:
                os._exit(code if code > 0 else SIGNALLED - code)


def _tasks() -> dict[str, Callable[..., Any]]:
    """What the process can be asked to do: functions of what JSON can hold, free of torch."""
    from converters.audit import audit
    from converters.readers.pytorch_files import carry_out_tensors, describe_state_dict, holds_state_dict
    from converters.readers.reading import read_keras
    from converters.writing import carry_out

    return {
        "read": lambda path: read_keras(path).to_dict(),
        "fill": carry_out,
        "forward": _forward,
        "audit": lambda path: audit(path).to_dict(),
        "holds state dict": holds_state_dict,
        "describe state dict": describe_state_dict,
        "fill tensors": carry_out_tensors,
    }


def _forward(path: str, **arguments: Any) -> None:
    """The file's own meaning, for the proof (imported here: nothing else needs it)."""
    from converters.proof.forwarding import forward_into

    forward_into(path, **arguments)


def _work(connection: Connection, tasks: dict[str, Callable[..., Any]]) -> NoReturn:
    """Carry out orders until there are no more; the worker's whole life."""
    code = 1
    try:
        _quieten()
        with contextlib.suppress(EOFError):
            while data := connection.recv_bytes():
                order = json.loads(data)
                os.chdir(order["folder"])  # the interpreter's is that of another time
                with _limits(order["seconds"], order["memory"]):
                    answer = _answer(tasks[order["task"]], order["arguments"])
                connection.send_bytes(json.dumps(answer).encode())
        code = 0
    finally:
        os._exit(code)


def _answer(task: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"result": task(**arguments)}
    except MemoryError:
        return {"error": "ValueError", "sentence": f"{arguments['path']} asks for more memory than weights can need"}
    except (OSError, ValueError, ImportError) as error:
        kind = next(name for name, known in REFUSALS.items() if isinstance(error, known))
        return {"error": kind, "sentence": str(error)}
    except BaseException:
        return {"bug": traceback.format_exc()}


def _quieten() -> None:
    """No messages of dying libraries on the terminal, no core files, and signals as a fresh process has them."""
    import resource

    silent = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(silent, standard)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@contextlib.contextmanager
def _limits(seconds: int, memory: int) -> Iterator[None]:
    """Processor time and memory from here on; the hard limits stay, so that the next call may have its own."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used.ru_utime + used.ru_stime) + seconds, most))
    status = Path("/proc/self/status")
    before = resource.getrlimit(resource.RLIMIT_DATA)
    if status.exists():
        [kilobytes] = [int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmData")]
        resource.setrlimit(resource.RLIMIT_DATA, (kilobytes * 1024 + memory, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
