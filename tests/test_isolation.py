"""Files are read in a process of its own: what it finds, refuses, and what becomes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque

import pytest

from converters.readers import process
from converters.readers.process import reading_process
from converters.readers.reading import read_keras
from tests.conftest import KERAS1

SOURCE = KERAS1 / "vgg16.h5"


@pytest.fixture
def worker(monkeypatch):
    """A worker of a new interpreter, whose only child it is: an older one may have one that is just ending."""
    monkeypatch.setattr(process._Reader, "idle", deque())
    worker = process._Reader.take()
    yield worker
    worker.give_back()
    for reader in process._Reader.idle:
        reader.end()


def number_of(worker) -> int:
    """The process that was forked for the file; it has answered once, so that it is there and waits."""
    worker.call("read", path=str(SOURCE))
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(worker.process.pid)], capture_output=True, text=True)
    return int(found.stdout)


def has_ended(number: int) -> bool:
    for _ in range(500):
        found = subprocess.run(["ps", "-o", "stat=", "-p", str(number)], capture_output=True, text=True)
        if found.stdout.strip() in ("", "Z"):
            return True
        time.sleep(0.01)
    return False


def test_what_is_read_in_another_process_is_what_is_read_here():
    with reading_process() as call:
        found = call("read", path=str(SOURCE))
    assert found == json.loads(json.dumps(read_keras(SOURCE).to_dict()))


def test_paths_are_read_from_where_the_caller_is_now(tmp_path, monkeypatch):
    with reading_process() as call:
        call("read", path=str(SOURCE))  # so that the server is there
    monkeypatch.chdir(SOURCE.parent)
    with reading_process() as call:
        assert call("read", path=SOURCE.name)["path"] == SOURCE.name
        monkeypatch.chdir(tmp_path)
        with pytest.raises(FileNotFoundError, match=f"^{SOURCE.name} does not exist"):
            call("read", path=SOURCE.name)


def test_errors_arrive_as_they_were_raised(tmp_path):
    (tmp_path / "text.h5").write_text("none")
    with reading_process() as call:
        with pytest.raises(OSError, match="is not an HDF5 file"):
            call("read", path=str(tmp_path / "text.h5"))
        with pytest.raises(FileNotFoundError, match="does not exist"):
            call("read", path=str(tmp_path / "none.h5"))
        assert call("read", path=str(SOURCE))["container"] == "legacy"  # and it goes on


def test_a_bug_there_shows_its_traceback():
    with reading_process() as call, pytest.raises(RuntimeError, match="TypeError"):
        call("read", path=str(SOURCE), unknown=3)


def test_a_crash_there_is_a_sentence_here(worker):
    os.kill(number_of(worker), signal.SIGSEGV)
    with pytest.raises(ValueError, match=r"vgg16.h5 crashes the HDF5 library \(SIGSEGV\); it is damaged, download it"):
        worker.call("read", path=str(SOURCE))


def test_too_much_processor_time_is_a_sentence_here(worker, monkeypatch):
    os.kill(number_of(worker), signal.SIGXCPU)  # what the system sends
    monkeypatch.setattr(process, "BYTES_A_SECOND", 10**12)
    monkeypatch.setattr(process, "SECONDS", 4)
    with pytest.raises(ValueError, match="keeps the HDF5 library busy for more than 5 s"):
        worker.call("read", path=str(SOURCE))


def test_a_call_that_takes_too_long_by_the_clock_is_ended(worker, monkeypatch):
    number = number_of(worker)
    monkeypatch.setattr(process, "WAIT", 0.01)
    os.kill(number, signal.SIGSTOP)
    with pytest.raises(ValueError, match="was not read after"):
        worker.call("read", path=str(SOURCE))
    assert has_ended(number)


def test_processor_time_and_memory_are_limited_in_the_process_itself():
    """The limits are those of the system, so that nothing in the library can get around them."""
    code = """
from converters.readers.process import _limits
import resource
with _limits(7, 100_000_000):
    assert 7 <= resource.getrlimit(resource.RLIMIT_CPU)[0] <= 9
    try:
        bytearray(200_000_000)
    except MemoryError:
        print("refused")
bytearray(200_000_000)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"


def test_workers_are_forked_from_one_small_process():
    with reading_process() as call:
        call("read", path=str(SOURCE))
    server = process._Reader.idle[-1].process.pid
    with reading_process() as call:
        call("read", path=str(SOURCE))
    assert process._Reader.idle[-1].process.pid == server
    if os.path.isdir(f"/proc/{server}/task"):  # noqa: PTH112
        assert len(os.listdir(f"/proc/{server}/task")) == 1  # noqa: PTH208
        with open(f"/proc/{server}/maps") as maps:  # noqa: PTH123
            assert "libtorch" not in maps.read()


def test_a_server_that_was_killed_is_started_again():
    with reading_process() as call:
        call("read", path=str(SOURCE))
    for reader in process._Reader.idle:
        reader.process.kill()
        reader.process.wait()
    with reading_process() as call:
        assert call("read", path=str(SOURCE))["named"]


def test_threads_read_side_by_side():
    found = []

    def read():
        with reading_process() as call:
            found.append(call("read", path=str(SOURCE))["container"])

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["legacy"] * 8


def test_the_server_ends_with_its_parent():
    code = """
from converters.readers import process
with process.reading_process() as call:
    pass
print(process._Reader.idle[-1].process.pid)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert has_ended(int(done.stdout))


def test_an_interpreter_of_its_own_serves_where_forking_does_not(monkeypatch, tmp_path):
    monkeypatch.setattr(process, "FORKS", False)
    (tmp_path / "text.h5").write_text("none")
    with reading_process() as call:
        assert call("read", path=str(SOURCE))["container"] == "legacy"
        with pytest.raises(OSError, match="is not an HDF5 file"):
            call("read", path=str(tmp_path / "text.h5"))
    worker = process._Reader()
    worker.process.send_signal(signal.SIGSEGV)
    with pytest.raises(ValueError, match="crashes the HDF5 library"):
        worker.call("read", path=str(SOURCE))
    worker.end()


def test_without_isolation_the_same_tasks_run_here():
    with reading_process(isolated=False) as call:
        assert call("read", path=str(SOURCE))["container"] == "legacy"
