"""Read untrusted files in a separate process with limits on CPU time and memory.

libhdf5 can crash or loop forever on a damaged file. Therefore a child process does all work on such a file and returns
the result as JSON; if the child dies, the parent raises an error that says so.

Starting an interpreter for each file would take some tenths of a second, and forking this process would copy the locks
held by its threads. So one interpreter is started, with h5py and NumPy but without torch and with a single thread; it
forks a worker for each file in milliseconds. Between files it stays idle, and it ends with this process. Where a forked
process may not use the system's numerical library (macOS), the interpreter reads one file and ends. On Windows
everything is read in the calling process.
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

Call = Callable[..., Any]  # call("read", path=...) -> result of the task of that name

SECONDS = 3  # CPU time of one call, plus 1 second for every `BYTES_A_SECOND` of the file
BYTES_A_SECOND = 10_000_000
WAIT = 60  # wall-clock seconds allowed per second of CPU time
MEMORY = 400_000_000  # bytes that a call may allocate in addition to the worker's own
HDF5_TASKS = ("read", "fill", "forward", "audit")
MOST_IDLE = 4  # idle interpreters kept for the next file
SIGNALLED = 128  # plus the signal's number: exit code if a signal ended a worker
PROOF = {"seconds": 60, "memory": 10}  # factors on the limits for the proof, which computes
# The first code that a new interpreter runs. It starts in isolated mode: modules are not searched for in the current
# folder, which may hold arbitrary modules, or along PYTHON* variables. These two packages are loaded from where this
# process has them, and nothing else from there.
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
NEEDED = ("numpy", "h5py", "lazy_loader")  # these may be in the user's site-packages or on PYTHONPATH
FORKS = sys.platform.startswith("linux")  # on macOS, forked processes cannot use the numerical library
ENVIRONMENT = {
    **dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "HDF5_PLUGIN_PRELOAD": "::",  # keep files from making libhdf5 load filter plugins
}
REFUSALS: dict[str, type[Exception]] = {
    error.__name__: error
    for error in (FileNotFoundError, IsADirectoryError, PermissionError, OSError, ValueError, ImportError)
}


@contextlib.contextmanager
def reading_process(*, isolated: bool = True) -> Iterator[Call]:
    """Provide a reading process and yield a function that runs its tasks (`_tasks`).

    Args:
        isolated: if False, run the tasks in this process.

    Yields:
        `call(task, **arguments)`; arguments, among them `path`, and result must be serialisable as JSON.

    Raises (by `call`):
        OSError, ValueError: raised by the task.
        ValueError: the process crashed on the file, or exceeded its time or memory limit.
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
    """An interpreter that forks a worker for each file or, without fork, is itself the worker for one file."""

    idle: ClassVar[deque[_Reader]] = deque()

    def __init__(self) -> None:
        flags = ["-I", "-X", f"utf8={sys.flags.utf8_mode}", *(["-B"] if sys.dont_write_bytecode else [])]
        home = str(Path(__file__).resolve().parents[2])
        command = [sys.executable, *flags, "-c", START.format(forks=FORKS), home, *_further_folders()]
        ours, theirs = socket.socketpair()
        with theirs:  # in a new session, so that workers can be killed with it
            self.process = subprocess.Popen(
                command,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=os.environ | ENVIRONMENT,
                start_new_session=True,
            )
        self.connection = Connection(ours.detach())
        self.owner = os.getpid()
        self.busy = False  # whether a reply is pending
        atexit.register(self.end)

    @classmethod
    def take(cls) -> _Reader:
        """Return an idle or new interpreter after telling it to start a worker."""
        reader = None
        while reader is None and cls.idle:
            with contextlib.suppress(IndexError):  # another thread took the last one
                found = cls.idle.pop()
                # A process forked from this one must not use its parent's interpreters.
                reader = found if found.owner == os.getpid() and found.process.poll() is None else None
        reader = reader or cls()
        with contextlib.suppress(OSError):  # it just died, which the first call reports
            reader.connection.send_bytes(b"")
        return reader

    def give_back(self) -> None:
        """End the worker; keep the interpreter for the next file if it can fork another worker."""
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
        self.connection.close()  # the interpreter reads end-of-file, and ends
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
        memory = MEMORY + (size if task == "fill tensors" else 0)  # this task reads whole tensors
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
    """Return the folders from which this process imports `NEEDED`, as an isolated interpreter may not find them."""
    here = Path.cwd()
    places = [entry for entry in sys.path if Path(entry).is_absolute()]
    places.sort(key=lambda entry: Path(entry) == here)  # the current folder is searched last, and never as ""
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


# Code that runs in the reading process


def serve(*, forks: bool) -> None:
    """Start a worker for each request until the connection closes; if a worker fails, exit with its code."""
    tasks = _tasks()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it
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
    """Return the reading process's tasks by name: functions of JSON values that do not need torch."""
    from converters.audit import audit
    from converters.readers.foreign import kind_of_zip
    from converters.readers.pytorch_files import carry_out_tensors, describe_state_dict
    from converters.readers.reading import read_keras
    from converters.writing import carry_out

    return {
        "read": lambda path: read_keras(path).to_dict(),
        "fill": carry_out,
        "forward": _forward,
        "audit": lambda path: audit(path).to_dict(),
        "kind of zip": kind_of_zip,
        "describe state dict": describe_state_dict,
        "fill tensors": carry_out_tensors,
    }


def _forward(path: str, **arguments: Any) -> None:
    """Compute the file's own model for the proof; imported here, as no other task needs it."""
    from converters.proof.forwarding import forward_into

    forward_into(path, **arguments)


def _work(connection: Connection, tasks: dict[str, Callable[..., Any]]) -> NoReturn:
    """Execute orders until there are no more, then exit: the worker's main function."""
    code = 1
    try:
        _quieten()
        with contextlib.suppress(EOFError):
            while data := connection.recv_bytes():
                order = json.loads(data)
                os.chdir(order["folder"])  # the parent may have changed its folder since the interpreter started
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
    """Silence the standard streams, disable core files and restore default signal handlers."""
    import resource

    silent = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(silent, standard)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@contextlib.contextmanager
def _limits(seconds: int, memory: int) -> Iterator[None]:
    """Limit CPU time and memory from here on; hard limits stay unchanged, so that the next call can set its own."""
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
