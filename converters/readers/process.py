"""Read files from strangers in a process of its own, with limits on its time and memory.

libhdf5 itself can crash or run forever over a damaged file. A child does all that touches such a file and tells what
it found as JSON; when it dies, the parent says so in a sentence.

Forking this process would copy the locks that its threads hold, and starting an interpreter for each file costs some
tenths of a second. So one small process, the server, is started once: it has h5py and NumPy, no torch and one thread,
and forks a child for each file in milliseconds. It ends with this process.

On macOS, where a forked process may not use the system's numerical library, each file gets an interpreter of its own
after all. On Windows everything is read in the calling process.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.machinery import PathFinder
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

Call = Callable[..., Any]  # call("read", path=...) -> what the task of that name returns

SECONDS = 3  # of processor time for one call, and 1 more for each
BYTES_A_SECOND = 10_000_000  # of the file
WAIT = 60  # seconds that a call may take by the clock for each second of processor time
MEMORY = 400_000_000  # bytes that a call may take beyond what the fresh child has
HDF5_TASKS = ("read", "fill", "forward", "audit")
PROOF = {"seconds": 60, "memory": 10}  # times as much for the proof, which computes
# The first thing that a new interpreter runs. It is started isolated: neither the current folder, which may be full of
# somebody's modules, nor PYTHON* variables say where modules lie. These two packages are taken from where they are
# here, and nothing else from there.
START = """
import sys
function, descriptor, home, *further = sys.argv[1:]
sys.path += [folder for folder in further if folder not in sys.path]
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
for name in ("convnets_torch", "converters"):
    spec = PathFinder.find_spec(name, [home])
    sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
from converters.readers import process
getattr(process, function)(int(descriptor))
"""
NEEDED = ("lazy_loader", "numpy", "h5py")  # in the user's own packages or on PYTHONPATH, perhaps
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
    """Start a process that reads files, and give a function that runs one of its tasks (`converters.readers.tasks`).

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
    worker = _Worker()
    try:
        yield worker.call
    finally:
        worker.end()


def _here(task: str, **arguments: Any) -> Any:
    return import_module("converters.readers.tasks").TASKS[task](**arguments)


class _Server:
    """The process that forks; one for this process, started when it is first needed or has gone."""

    lock = threading.Lock()
    process: subprocess.Popen[bytes] | None = None
    control: socket.socket | None = None

    @classmethod
    def send(cls, descriptors: list[int]) -> None:
        """Have a worker forked that talks through the first descriptor, and its fate told through the second."""
        with cls.lock:
            control = cls.control
            if control is None or cls.process is None or cls.process.poll() is not None:
                control = cls.start()
            socket.send_fds(control, [b"."], descriptors)

    @classmethod
    def start(cls) -> socket.socket:
        if cls.control is not None:
            cls.control.close()
        ours, theirs = socket.socketpair()
        cls.control = ours
        with theirs:
            cls.process = _interpreter("run_server", theirs.fileno())
        atexit.register(cls.stop, cls.process, ours)
        return ours

    @staticmethod
    def stop(process: subprocess.Popen[bytes], control: socket.socket) -> None:
        """The end of its orders is the end of the server."""
        control.close()
        process.wait()


def _interpreter(function: str, descriptor: int) -> subprocess.Popen[bytes]:
    """A new Python that runs a function of this module on a descriptor that it inherits."""
    flags = ["-I", "-X", f"utf8={sys.flags.utf8_mode}", *(["-B"] if sys.dont_write_bytecode else [])]
    home = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, *flags, "-c", START, function, str(descriptor), home, *_further_folders()]
    return subprocess.Popen(command, pass_fds=[descriptor], stdin=subprocess.DEVNULL, env=os.environ | ENVIRONMENT)


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


class _Worker:
    """One process, which reads one file or several: forked by the server, or an interpreter of its own."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.fate, told = socket.socketpair()
        self.process: subprocess.Popen[bytes] | None = None
        with theirs, told:
            if FORKS:
                _Server.send([theirs.fileno(), told.fileno()])
            else:
                self.process = _interpreter("run_worker", theirs.fileno())
        self.connection = Connection(ours.detach())

    def call(self, task: str, **arguments: Any) -> Any:
        return _ask(self, task, arguments)

    def end(self) -> None:
        self.connection.close()  # the worker reads the end of its orders, and ends
        self.fate.close()
        if self.process is not None:
            self.process.wait()

    def kill(self) -> None:
        if self.process is not None:
            return self.process.kill()
        with contextlib.suppress(OSError):
            os.kill(self._told(), signal.SIGKILL)
        return None

    def exit_code(self) -> int:
        """Of the worker; the first number told is its process, the second its end."""
        if self.process is not None:
            return self.process.wait()
        self._told()
        return self._told()

    def _told(self) -> int:
        data = self.fate.recv(4, socket.MSG_WAITALL)
        if len(data) < 4:
            raise RuntimeError("the process that reads files could not be started")
        return int(struct.unpack("i", data)[0])


def _ask(worker: _Worker, task: str, arguments: dict[str, Any]) -> Any:
    path = Path(arguments["path"])
    size = path.stat().st_size if path.is_file() else 0
    seconds = SECONDS + math.ceil(size / BYTES_A_SECOND)
    memory = MEMORY + (size if task == "fill tensors" else 0)  # whose tensors are read as a whole
    if task == "forward":
        seconds, memory = seconds * PROOF["seconds"], memory * PROOF["memory"]
    order = {"task": task, "arguments": arguments, "folder": str(Path.cwd()), "seconds": seconds, "memory": memory}
    try:
        worker.connection.send_bytes(json.dumps(order).encode())
        if not worker.connection.poll(WAIT * seconds):
            worker.kill()
            raise ValueError(
                f"{path} was not read after {WAIT * seconds} s; copy it to a local disk, or download it again"
            )
        answer = json.loads(worker.connection.recv_bytes())
    except (EOFError, OSError):
        what = "the HDF5 library" if task in HDF5_TASKS else "the reader"
        raise _death(path, worker.exit_code(), seconds, what) from None
    if "bug" in answer:
        raise RuntimeError(f"reading {path} failed in its own process:\n{answer['bug']}")
    if "error" in answer:
        raise REFUSALS[answer["error"]](answer["sentence"])
    return answer["result"]


def _death(path: Path, code: int, seconds: int, what: str) -> Exception:
    if code == -signal.SIGXCPU:
        return ValueError(f"{path} keeps {what} busy for more than {seconds} s; it is damaged, download it again")
    if code < 0:
        name = signal.Signals(-code).name
        return ValueError(f"{path} crashes {what} ({name}); it is damaged, download it again")
    return RuntimeError(f"the process that reads {path} ended with exit code {code}")


# What runs in the server and in the workers that it forks


def run_server(control: int) -> None:
    """Fork a worker for each pair of descriptors that arrives, until the other end is closed."""
    tasks = import_module("converters.readers.tasks").TASKS
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to answer
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who watch
    listening = socket.socket(fileno=control)
    while True:
        message, descriptors, _, _ = socket.recv_fds(listening, 1, 2)
        if not message:
            return
        if os.fork() == 0:
            listening.close()
            orders, fate = descriptors
            _watch(orders, fate, tasks)
        for descriptor in descriptors:
            os.close(descriptor)


def run_worker(orders: int) -> None:
    """Be the worker: what an interpreter of its own is started for."""
    _serve(orders, import_module("converters.readers.tasks").TASKS)


def _watch(orders: int, fate: int, tasks: dict[str, Callable[..., Any]]) -> NoReturn:
    """Fork the worker, and tell its number and how it ended."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        worker = os.fork()
        if worker == 0:
            os.close(fate)
            _serve(orders, tasks)
        os.close(orders)
        with contextlib.suppress(OSError):  # nobody listens any more
            os.write(fate, struct.pack("i", worker))
            os.write(fate, struct.pack("i", os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])))
    finally:
        os._exit(0)


def _serve(descriptor: int, tasks: dict[str, Callable[..., Any]]) -> NoReturn:
    """Carry out orders until there are no more; the worker's whole life."""
    code = 1
    try:
        _quieten()
        connection = Connection(descriptor)
        with contextlib.suppress(EOFError):
            while True:
                order = json.loads(connection.recv_bytes())
                os.chdir(order["folder"])  # the server's is that of another time
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
