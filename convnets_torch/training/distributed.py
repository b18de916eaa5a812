"""Distributed training with `torchrun`; a single process is a group of one."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import secrets
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from convnets_torch._version import __version__
from convnets_torch.text import printable

C10D: Any = distributed  # whose stores are documented, but not known to type checkers
START = timedelta(minutes=5)  # until all processes have started
TIMEOUT = timedelta(
    hours=12
)  # of collective operations; some processes are slower, but those that are gone are noticed
BEAT, SILENT = 5.0, 60.0  # seconds between signs of life of a process, and without one until it counts as gone

IGNORED_WARNINGS = (  # of PyTorch, which users can ignore
    "`broadcast_buffers` is deprecated",  # its replacement is much newer than PyTorch 2.6
    "Grad strides do not match bucket view strides",
    "find_unused_parameters=True was specified",  # `LayersStage` says why
)


@dataclass(frozen=True)
class Group:
    """A process and its process group.

    Attributes:
        rank: of this process, from 0; rank 0 writes files and reports.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def share(self, items: range) -> range:
        """Return this process's items: every `size`-th one.

        >>> [list(Group(rank, 2).share(range(5))) for rank in (0, 1)]
        [[0, 2, 4], [1, 3]]
        """
        return items[self.rank :: self.size]

    def total(self, values: Tensor) -> Tensor:
        """All-reduce: sum over all processes, in place."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def from_first(self, values: Tensor) -> Tensor:
        """Broadcast the values of rank 0 to all processes, in place."""
        if self.size > 1:
            distributed.broadcast(values, 0)
        return values

    def texts(self, text: str, device: torch.device) -> list[str]:
        """All-gather a text from each process, ordered by rank."""
        if self.size == 1:
            return [text]
        mine = torch.tensor([*text.encode()], dtype=torch.uint8)
        lengths = torch.zeros(self.size, dtype=torch.int64)
        lengths[self.rank] = len(mine)
        lengths = self.total(lengths.to(device)).cpu()
        rows = torch.zeros(self.size, int(lengths.max()), dtype=torch.uint8)
        rows[self.rank, : len(mine)] = mine
        rows = self.total(rows.to(device)).cpu()
        return [bytes(row[:length].tolist()).decode() for row, length in zip(rows, lengths, strict=True)]

    def wait(self) -> None:
        """Barrier: wait for all processes."""
        if self.size > 1:
            distributed.barrier()


def local_device() -> str | None:
    """Return the device of this process if `torchrun` started it, otherwise None.

    Raises:
        ValueError: there are more processes on this machine than GPUs.
    """
    if "LOCAL_RANK" not in os.environ:
        return None
    if not torch.cuda.is_available():
        return "cpu"
    number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= count:
        raise ValueError(
            f"this is process {number + 1} of this machine, which has {count} GPUs; start one for each:"
            f" --nproc-per-node {count}"
        )
    return f"cuda:{number}"


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Group]:
    """Join the process group that `torchrun` sets up in the environment, or one already joined; else a group of one.

    While the group lasts, each process watches the others. If one gives no sign of life for a minute, since its machine
    or the network is gone, this process says so and ends with exit code 1, as a collective operation that waits for it
    cannot be interrupted.

    Args:
        device: of this process; CUDA uses NCCL, the CPU gloo.

    Raises:
        ConnectionError: another process was lost, or did not start.
        ValueError: the processes have different kinds of devices, or versions of this package.
    """
    mine = not distributed.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1
    try:
        with warnings.catch_warnings(), _started(device) if mine else contextlib.nullcontext():
            together = distributed.is_available() and distributed.is_initialized()
            for message in IGNORED_WARNINGS:
                warnings.filterwarnings("ignore", message)
            yield Group(distributed.get_rank(), distributed.get_world_size()) if together else Group()
    except RuntimeError as error:
        if not isinstance(error, distributed.DistBackendError) and "gloo" not in str(error).lower():
            raise
        raise ConnectionError(
            "another process of this training ended or cannot be reached; see its output, and continue with --resume"
        ) from error


@contextlib.contextmanager
def _started(device: torch.device) -> Iterator[None]:
    """Join the process group of the environment, and watch the others until the block ends."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        store = C10D.TCPStore(*place, is_master=serves, wait_for_workers=False, timeout=START, multi_tenant=True)
        everyone = _introduced(C10D.PrefixStore("convnets_torch", store), rank, size, device, place)
    except distributed.DistError as error:
        raise ConnectionError(
            f"process {rank} of this training cannot reach {place[0]} port {place[1]}, where all {size} meet; see"
            " whether a firewall is between the machines, and whether the first one runs"
        ) from error
    with _Watch(rank, everyone, place):
        with _interface(rank, everyone):
            backend = "nccl" if device.type == "cuda" else "gloo"
            group = C10D.PrefixStore(everyone[0]["token"], store)
            distributed.init_process_group(backend, store=group, rank=rank, world_size=size, timeout=TIMEOUT)
        try:
            yield
        finally:
            distributed.destroy_process_group()


def _introduced(store: Any, rank: int, size: int, device: torch.device, place: tuple[str, int]) -> list[dict[str, str]]:
    """Exchange what the processes are; return it by rank.

    The store of torchrun lives on when it starts processes again, with all that earlier ones left in it. So rank 0
    makes a roll of what it finds, each process confirms the roll with its own token of now, and the roll holds once all
    have.
    """
    mine = {
        "host": socket.gethostname(), "address": _address_towards(*place), "device": device.type,
        "version": __version__, "token": secrets.token_hex(8),
    }  # fmt: skip
    store.set(f"process {rank}", json.dumps(mine))
    names = [f"process {number}" for number in range(size)]
    until = time.monotonic() + START.total_seconds()
    while True:
        there = [name for name in names if store.check([name])]
        if rank == 0 and there == names:
            store.set("roll", json.dumps([json.loads(store.get(name)) for name in names]))
        roll: list[dict[str, str]] = json.loads(store.get("roll")) if store.check(["roll"]) else []
        if len(roll) == size and roll[rank] == mine:
            confirmed = [each["token"] for each in roll]
            store.set(f"confirmed by {rank}", json.dumps(confirmed))
            keys = [f"confirmed by {number}" for number in range(size)]
            if store.check(keys) and all(json.loads(store.get(key)) == confirmed for key in keys):
                break
        if time.monotonic() > until:
            missing = ", ".join(name for name in names if name not in there) or "one that was started again"
            raise ConnectionError(
                f"process {rank} of this training has waited {START.total_seconds():g} seconds for the others"
                f" ({missing}); see their output"
            )
        time.sleep(0.05)
    for what, words in (("device", "device"), ("version", "version of convnets-torch")):
        for number, other in enumerate(roll):
            if other[what] != roll[0][what]:
                raise ValueError(
                    f"process 0 on {printable(roll[0]['host'])} has the {words} {printable(roll[0][what])}, but"
                    f" process {number} on {printable(other['host'])} has {printable(other[what])}; give all the same"
                )
    return roll


def _address_towards(host: str, port: int) -> str:
    """Return this machine's address on the way to another; empty if there is none. Nothing is sent."""
    try:
        [family, *_, there] = socket.getaddrinfo(host, port or 1, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as one:
            one.connect(there)
            return str(one.getsockname()[0])
    except OSError:
        return ""


@contextlib.contextmanager
def _interface(rank: int, everyone: Sequence[Mapping[str, str]]) -> Iterator[None]:
    """Let gloo use the network interface that leads to the other machines.

    By itself it takes the one of the host's name, which is often the loopback interface.
    """
    name, mine = "GLOO_SOCKET_IFNAME", everyone[rank]["address"]
    outside = [each["address"] for each in everyone if each["address"] and not _is_loopback(each["address"])]
    if name in os.environ or len({each["address"] for each in everyone}) == 1 or not outside:
        yield
        return
    if _is_loopback(mine):  # the machine of MASTER_ADDR
        mine = _address_towards(outside[0], 1)
    if (found := _interface_of(mine)) is None:
        yield
        return
    os.environ[name] = found
    try:
        yield
    finally:
        del os.environ[name]


def _is_loopback(address: str) -> bool:
    return not address or ipaddress.ip_address(address.partition("%")[0]).is_loopback


def _interface_of(address: str) -> str | None:
    """Return the name of the network interface with an IPv4 address; None if there is none, or on other systems."""
    if sys.platform != "linux":
        return None
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # an interface without an address
                found = fcntl.ioctl(one, 0x8915, name.encode().ljust(256, b"\0"))  # SIOCGIFADDR
                if socket.inet_ntoa(found[20:24]) == address:
                    return name
    return None


class _Watch:
    """Gives signs of life in the store of the group, looks for those of the others, and ends the process without them.

    Two threads: one may be stuck in a request to a store whose machine is gone.
    """

    def __init__(self, rank: int, everyone: Sequence[Mapping[str, str]], place: tuple[str, int]) -> None:
        self._rank, self._everyone, self._place = rank, everyone, place
        self._token = everyone[0]["token"]  # of this start of the group; a store may hold keys of an earlier one
        self._ended = threading.Event()
        self._heard = dict.fromkeys(range(len(everyone)), time.monotonic())
        self._answered = time.monotonic()  # when the store did

    def __enter__(self) -> None:
        for run in (self._beat, self._look):
            threading.Thread(target=run, name="watch", daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()

    def _beat(self) -> None:
        store, known, count = None, dict[int, bytes](), 0
        while not self._ended.is_set():
            with contextlib.suppress(distributed.DistError):
                if store is None:
                    wait = timedelta(seconds=SILENT)
                    store = C10D.TCPStore(*self._place, is_master=False, wait_for_workers=False, timeout=wait)
                count += 1
                store.set(f"{self._token}/{self._rank}", str(count))
                for other in self._heard:
                    key = f"{self._token}/{other}"
                    if store.check([key]) and (said := store.get(key)) != known.get(other):
                        known[other], self._heard[other] = said, time.monotonic()
                self._answered = time.monotonic()
            self._ended.wait(BEAT)

    def _look(self) -> None:
        before = time.monotonic()
        while not self._ended.wait(1):
            now = time.monotonic()
            if now - before > SILENT / 2:  # this process was stopped itself
                self._heard, self._answered = dict.fromkeys(self._heard, now), now
            before = now
            if now - self._answered > SILENT:
                self._end(f"{self._place[0]}, which holds the processes of this training together, cannot be reached")
            for other, when in self._heard.items():
                if now - when > SILENT:
                    host = printable(self._everyone[other]["host"])
                    self._end(f"process {other} on {host} has given no sign of life for {SILENT:g} seconds")

    def _end(self, reason: str) -> None:
        if not self._ended.is_set():
            sys.stderr.write(
                f"convnets-torch: {reason}, so that this training cannot go on; continue it with --resume\n"
            )
            sys.stderr.flush()
            os._exit(1)
