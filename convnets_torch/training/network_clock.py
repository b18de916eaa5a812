"""How long a network itself takes of a loop that also decodes, and how much memory the process took."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from convnets_torch.card import Card
from convnets_torch.pipeline import Runnable, ready_card


class Clock:
    """Seconds that a network runs, added up over its calls."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._seconds = device, 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def time(self, run: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Run it, and count. On CUDA, where a call only starts the work, events in its stream are what is counted."""
        if self._device.type == "cuda":
            with torch.cuda.device(self._device):
                begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                begin.record()
                found = run(images)
                end.record()
                self._events.append((begin, end))
            return found
        start = time.perf_counter()
        found = run(images)
        self._seconds += time.perf_counter() - start
        return found

    @property
    def seconds(self) -> float:
        """So far; on CUDA it waits for what was started."""
        if self._events:
            torch.cuda.synchronize(self._device)
            self._seconds += sum(begin.elapsed_time(end) for begin, end in self._events) / 1000
            self._events = []
        return self._seconds


class TimedNetwork(nn.Module):
    """A network around which a clock runs; its parameters are the network's own."""

    def __init__(self, network: nn.Module, card: Card | None, clock: Clock) -> None:
        super().__init__()
        self.network, self.card, self._clock = network, card, clock
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        return self._clock.time(self.network, images)


class TimedEngine:
    """The same around an engine, which is no module."""

    def __init__(self, engine: Runnable, clock: Clock) -> None:
        self.card, self._engine, self._clock = engine.card, engine, clock
        self.mapped = getattr(engine, "mapped", None)  # where it gives score maps, which `predict` refuses

    def __call__(self, images: Tensor, /) -> Tensor:
        return self._clock.time(self._engine, images)


def timed(network: Runnable) -> tuple[Runnable, Clock]:
    """The network with a clock around it, and the clock."""
    if not isinstance(network, nn.Module):
        clock = Clock(torch.device("cpu"))
        return TimedEngine(network, clock), clock
    clock = Clock(next(network.parameters()).device)
    return TimedNetwork(network, ready_card(network), clock), clock


def peak_memory() -> int | None:
    """Bytes that this process took of the computer's memory at most since it began; None where nobody can say."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
