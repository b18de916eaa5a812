"""Jobs over millions of pictures, on one machine or many: shards of a list, and one file for each.

>>> from convnets_torch import batch
>>> batch.__all__[:4]
['plan', 'run', 'status', 'check']
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convnets_torch.batch.collecting import collect as collect
    from convnets_torch.batch.duplicating import duplicates as duplicates
    from convnets_torch.batch.indexing import index as index
    from convnets_torch.batch.indexing import index_vectors as index_vectors
    from convnets_torch.batch.jobs import plan as plan
    from convnets_torch.batch.results import check as check
    from convnets_torch.batch.results import errors as errors
    from convnets_torch.batch.results import retry as retry
    from convnets_torch.batch.results import status as status
    from convnets_torch.batch.running import run as run
    from convnets_torch.batch.scanning import scan_on_ray as scan_on_ray
    from convnets_torch.batch.worker import Worker as Worker

_HOMES = {
    "plan": "jobs", "run": "running", "status": "results", "check": "results", "errors": "results",
    "retry": "results", "collect": "collecting", "Worker": "worker", "index": "indexing", "index_vectors": "indexing",
    "scan_on_ray": "scanning", "duplicates": "duplicating",
}  # fmt: skip
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a function when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
