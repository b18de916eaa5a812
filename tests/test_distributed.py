"""Processes of a training find each other, say what keeps them apart, and notice when one is gone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta

import pytest
import torch

from convnets_torch.training import distributed
from convnets_torch.training.distributed import Group, local_device
from convnets_torch.training.running import check_shared, checkpoint_in

CPU = torch.device("cpu")


@pytest.fixture
def store():
    """A store as torchrun's, in this process; its threads end with it."""
    return distributed.C10D.HashStore()


def introduced(store, rank, device=CPU):
    return distributed._introduced(store, rank, 2, device, ("127.0.0.1", 1))


def test_processes_that_are_started_again_do_not_take_earlier_ones_for_each_other(store):
    """The store of torchrun lives on. Rank 1 is started again first, and finds all that an earlier rank 0 has left."""
    with ThreadPoolExecutor(2) as threads:
        first = [one.result() for one in [threads.submit(introduced, store, rank) for rank in range(2)]]
        assert first[0] == first[1]
        later = threads.submit(introduced, store, 1)
        time.sleep(0.3)
        assert not later.done()
        again = [threads.submit(introduced, store, 0).result(), later.result()]
    assert again[0] == again[1]
    assert {each["token"] for each in again[0]}.isdisjoint(each["token"] for each in first[0])


def test_other_devices_and_missing_processes_are_a_sentence(store, monkeypatch):
    with ThreadPoolExecutor(2) as threads:
        both = [threads.submit(introduced, store, 0), threads.submit(introduced, store, 1, torch.device("cuda"))]
        for one in both:
            with pytest.raises(
                ValueError, match=r"has the device cpu, but process 1 on \S+ has cuda; give all the same"
            ):
                one.result()
    monkeypatch.setattr(distributed, "START", timedelta(seconds=0.2))
    with pytest.raises(ConnectionError, match=r"process 0 of this training has waited 0\.2 seconds .*\(process 1\)"):
        introduced(distributed.C10D.HashStore(), 0)


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for its interfaces")
def test_the_interface_is_the_one_that_leads_to_the_others(monkeypatch):
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert distributed._interface_of("127.0.0.1") == "lo"
    assert distributed._interface_of("203.0.113.7") is None
    assert distributed._address_towards("127.0.0.1", 1) == "127.0.0.1"
    away = [{"address": "10.0.0.1"}, {"address": "127.0.0.1"}]
    monkeypatch.setattr(distributed, "_interface_of", {"10.0.0.1": "eth7", "10.0.0.2": "eth8"}.get)
    monkeypatch.setattr(distributed, "_address_towards", lambda host, port: "10.0.0.2")
    for rank, name in enumerate(("eth7", "eth8")):
        with distributed._interface(rank, away):
            assert os.environ["GLOO_SOCKET_IFNAME"] == name
    with distributed._interface(0, [{"address": "127.0.0.1"}] * 2):
        assert "GLOO_SOCKET_IFNAME" not in os.environ
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "mine")
        with distributed._interface(0, away):
            assert os.environ["GLOO_SOCKET_IFNAME"] == "mine"


def test_more_processes_than_gpus_are_a_sentence(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"process 3 of this machine, which has 2 GPUs; .*: --nproc-per-node 2"):
        local_device()
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert local_device() == "cuda:1"


WATCHED = """
import sys, time
from datetime import timedelta
from torch import distributed as c10d
from convnets_torch.training import distributed
rank, port = map(int, sys.argv[1:])
distributed.BEAT, distributed.SILENT = 0.2, 3.0
place = "127.0.0.1", port
store = c10d.TCPStore(*place, is_master=rank == 0, wait_for_workers=False, timeout=timedelta(seconds=60))
store.set(f"here {rank}", "")
store.wait(["here 0", "here 1"])
with distributed._Watch(rank, [{"token": "now", "host": f"host {number}"} for number in range(2)], place):
    print("watches", flush=True)
    sys.stdin.read()
print("left")
"""


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [1, pytest.param(0, marks=pytest.mark.cluster)])
def test_who_gives_no_sign_of_life_ends_the_others(stopped):
    """A process is stopped, as a machine that hangs: one, or that of the store."""
    message = (
        "127.0.0.1, which holds the processes of this training together, cannot be reached",
        "process 1 on host 1 has given no sign of life for 3 seconds",
    )[stopped]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    both = []
    for rank in range(2):
        command = [sys.executable, "-c", WATCHED, str(rank), str(port)]
        both.append(subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True))
    try:
        assert [process.stdout.readline() for process in both] == ["watches\n"] * 2
        time.sleep(1)
        assert [process.poll() for process in both] == [None, None]
        os.kill(both[stopped].pid, signal.SIGSTOP)
        error = both[1 - stopped].stderr.read()
        assert both[1 - stopped].wait(30) == 1
        assert message in error
        assert error.endswith("continue it with --resume\n")
    finally:
        for process in both:
            process.kill()
            process.communicate()


@dataclass(frozen=True)
class Two(Group):
    """One of two processes, of which the other says the same, but for what it sees."""

    size: int = 2
    sees: bool = True

    def texts(self, text, device):
        return [text, json.dumps(["elsewhere", self.sees]) if text.startswith("[") else text]

    def wait(self) -> None: ...


def test_a_folder_that_one_process_does_not_see_is_named(tmp_path):
    path = tmp_path / "mine.checkpoint.safetensors"
    check_shared(path, Group(), CPU)
    check_shared(path, Two(), CPU)
    with pytest.raises(
        ValueError, match=rf"process 1 on elsewhere cannot see the folder {tmp_path}, in which process 0"
    ):
        check_shared(path, Two(sees=False), CPU)
    assert not list(tmp_path.iterdir())


def test_the_address_of_a_checkpoint(tmp_path):
    assert checkpoint_in(tmp_path, "mine") == tmp_path / "mine"
    with pytest.raises(ValueError, match="holds a password"):
        checkpoint_in("s3://key:secret@bucket/run", "mine")
