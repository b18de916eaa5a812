"""Convert weights: read, plan, check everything, then write."""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

import convnets_torch
from converters.keras_h5 import open_keras_h5
from converters.keras_plan import plan_keras
from converters.plans import Plan, Row, Step
from converters.pytorch_files import read_state_dict
from converters.pytorch_plan import plan_pytorch
from convnets_torch.cache import cache_folder
from convnets_torch.card import KEY, Card, Source
from convnets_torch.files import check_regular, check_writable, resolved, sha256
from convnets_torch.filling import filling
from convnets_torch.preprocessing import Preprocessing, preset

PYTORCH_MAGIC = (b"PK\x03\x04", b"\x80\x02")  # a zip, and the older bare pickle


@dataclass(frozen=True)
class Report:
    """What a conversion did.

    Attributes:
        source: the file that was read.
        destination: the file that was written.
        card: what the weights are, as it stands in the file.
        rows: one for each of our parameters, in the order of the network.
    """

    source: Path
    destination: Path
    card: Card
    rows: tuple[Row, ...]


def convert(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str] | None,
    *,
    backend: str | None = None,
    preprocessing: str | None = None,
) -> Report:
    """Convert weights to a safetensors file with a card.

    Read are the `.h5` weights of AlexNet, VGG16 and VGG19 of convnets-keras (Keras 1) and the VGG files of
    Keras 0.x, and the `.pth` of EfficientNet-Lite0. Every array of the file and every parameter of the network
    is accounted for before anything is written. The same source and options give the same bytes.

    Args:
        source: the file to read.
        destination: the file to write; None puts it into the user's cache under the network's name.
        backend: "theano" or "tensorflow", what trained the weights; needed only where neither the file nor its
            lineage says it. Kernels trained by Theano are flipped.
        preprocessing: a preset of the network; None for the one that its released weights were trained with.

    Returns:
        What was done with each array.

    Raises:
        OSError: `source` cannot be read or `destination` cannot be written; an older file there survives.
        ValueError: the file is not known or not complete, holds NaN or infinite values, or needs `backend`.

    >>> report = convert("alexnet_weights.h5", "converted.safetensors")
    >>> report.card.network, report.rows[0].source, report.rows[0].change
    ('alexnet', 'conv_1', 'flipped')
    """
    source = Path(source)
    if destination is not None:
        check_writable(Path(destination))
        if resolved(destination) == resolved(source):
            raise ValueError(f"{source} is source and destination; name another file to write")
    with _planned(source, backend) as plan, ThreadPoolExecutor(1) as beside:
        if plan.arguments["classes"] == 1:
            raise ValueError(f"{source} has a single output, which no softmax fits; such heads are not read so far")
        rule = preset(plan.network, preprocessing)
        if destination is None:
            cache_folder().mkdir(parents=True, exist_ok=True)
            destination = cache_folder() / f"{plan.network}.safetensors"
            check_writable(destination)
        digest = beside.submit(sha256, source)
        layout = {step.row.parameter: (_dtype(step), step.row.shape) for step in plan.steps}
        placeholder = _card(source, plan, rule, "0" * 64)  # as long as the one with the digest, which takes its time
        with filling(destination, layout, {KEY: placeholder.to_json()}) as file:
            _fill(source, plan, file.arrays)
            card = _card(source, plan, rule, digest.result())
            file.metadata = {KEY: card.to_json()}
    return Report(source, Path(destination), card, tuple(step.row for step in plan.steps))


def _card(source: Path, plan: Plan, rule: Preprocessing, digest: str) -> Card:
    return Card(
        network=plan.network,
        arguments=plan.arguments,
        preprocessing=rule,
        class_names="imagenet-1k" if plan.arguments["classes"] == 1000 else None,
        source=Source(
            file=source.name,
            sha256=digest,
            framework=plan.framework,
            backend=plan.backend,
            changes=_summary(plan),
            converter=f"convnets-torch {convnets_torch.__version__}",
        ),
    )


def _dtype(step: Step) -> torch.dtype:
    return torch.int64 if step.row.parameter.endswith("num_batches_tracked") else torch.float32


@contextmanager
def _planned(source: Path, backend: str | None) -> Iterator[Plan]:
    """The plan for a file of any known kind; the file stays open while the plan is carried out."""
    check_regular(source)
    with source.open("rb") as file:
        start = file.read(8)
    if not start:
        raise OSError(f"{source} is empty; download it again")
    if start.startswith(b"PK") and not _is_pytorch_zip(source):
        raise ValueError(f"{source} is a zip archive, but none of PyTorch (.keras files are not read so far)")
    if start.startswith(PYTORCH_MAGIC):
        if backend is not None:
            raise ValueError(f"{source} is a file of PyTorch, which has no backend; leave out the backend")
        yield plan_pytorch(source, read_state_dict(source))
    elif h5py.is_hdf5(source) or source.suffix.lower() in (".h5", ".hdf5"):
        with open_keras_h5(source) as keras:
            yield plan_keras(keras, backend)
    else:
        raise ValueError(f"{source} is neither HDF5 (.h5) nor a file of PyTorch (.pth); name a weights file")


def _is_pytorch_zip(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except zipfile.BadZipFile:
        return True  # a truncated one, for PyTorch's reader to refuse


def _fill(source: Path, plan: Plan, arrays: dict[str, Tensor]) -> None:
    not_finite = []
    for step in plan.steps:
        array = arrays[step.row.parameter]
        try:
            with np.errstate(over="ignore"):  # float64 values too large for float32 become infinite, and are refused
                step.fill(array)
        except OSError as error:
            raise ValueError(f"{source}: {step.row.source} cannot be read ({error}); download the file again") from None
        # A finite sum has finite terms; the exact check, which needs memory, is for sums that overflow.
        if not array.sum().isfinite() and not array.isfinite().all():
            not_finite.append(step.row.source)
    if not_finite:
        raise ValueError(
            f"{source} holds NaN, infinite or (for float32) too large weights in"
            f" {', '.join(dict.fromkeys(not_finite))}; the training diverged, or the file is broken"
        )


def _summary(plan: Plan) -> tuple[str, ...]:
    """The changes, counted: "3 arrays flipped, concatenated"."""
    counts = Counter(step.row.change for step in plan.steps)
    return tuple(f"{count} arrays {change}" for change, count in counts.items())
