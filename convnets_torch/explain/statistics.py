"""Channel statistics over many pictures: means, deviations, shares of zeros, and dead channels."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Unpack

from convnets_torch.explain.activations import BROKEN, observed
from convnets_torch.explain.layer_names import LayerLike, find_layer, find_layers, needed
from convnets_torch.files import Output, Writer
from convnets_torch.images.decoding import Picture, Reading, ReadingKeywords, picture_name
from convnets_torch.inference.pipeline import THREADS, Input, Inputs, each_of, place_of, ready_card, run_pictures
from convnets_torch.networks import Network
from convnets_torch.networks.network import as_network
from convnets_torch.npz import write_npz
from convnets_torch.options import FormerAttribute, checked, shows
from convnets_torch.text import cell
from convnets_torch.visualization.charts import draw_histogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BATCH_SIZE = 16  # pictures
MEASURES = ("mean", "standard_deviation", "zeros", "maximum")  # of a channel
BINS = 20


@dataclass(frozen=True, eq=False)
class ChannelStatistics:
    """Statistics of one layer's channels over all pictures and cells.

    Attributes:
        layer: name of the module.
        pictures: number of pictures.
        values: number of values per channel: pictures times cells.
        mean, standard_deviation: (channels,) float64; the population standard deviation (divided by N).
        zeros: share of values that are exactly zero, (channels,) 0 to 1.
        maximum: (channels,) float64.
    """

    layer: str
    pictures: int
    values: int
    mean: NDArray[np.float64]
    standard_deviation: NDArray[np.float64]
    zeros: NDArray[np.float64]
    maximum: NDArray[np.float64]

    @property
    def dead(self) -> NDArray[np.bool_]:
        """(channels,) whether the channel was never above zero."""
        return self.maximum <= 0


@dataclass(frozen=True, eq=False)
class ZeroShares:
    """The share of zeros in embeddings.

    Attributes:
        layer: name of the module.
        shares: share of each picture's values that are exactly zero, (pictures,) 0 to 1.
        errors: (name, error) of each unusable picture.
    """

    layer: str
    shares: NDArray[np.float64]
    errors: tuple[tuple[str, Exception], ...] = ()

    def histogram(self, bins: int = BINS) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return picture counts in equal bins from 0 to 1, (bins,), and the bin edges, (bins + 1,)."""
        counts, edges = np.histogram(self.shares, bins=bins, range=(0, 1))
        return counts, edges

    def draw(self, bins: int = BINS, *, ax: Axes | None = None) -> Axes:
        """Draw the histogram, with the mean in the title; `visualization.charts.save_chart` writes it."""
        words = f"{self.layer}: share of values that are zero, in {len(self.shares)} pictures"
        mean = f"mean {self.shares.mean():.3f}, from {self.shares.min():.3f} to {self.shares.max():.3f}"
        return draw_histogram(*self.histogram(bins), (words, mean), ax=ax)


@dataclass(frozen=True, eq=False)
class FolderStatistics:
    """Channel statistics of several layers over many pictures.

    Attributes:
        layers: one entry per layer, in execution order.
        errors: (name, error) of each unusable picture.
        notes: notes on unusual pictures.
    """

    layers: tuple[ChannelStatistics, ...]
    errors: tuple[tuple[str, Exception], ...] = ()
    notes: tuple[str, ...] = ()
    remarks = FormerAttribute("notes")


class _Running:
    """Running moments of channels, merged batch by batch in float64.

    Source: Chan, Golub, LeVeque: Algorithms for Computing the Sample Variance, The American Statistician 37 (1983),
    equations 2.1. Plain sums of squares would lose small deviations around large means to rounding.
    """

    def __init__(self) -> None:
        self.pictures = self.count = 0
        self.mean: Any = 0.0
        self.squares: Any = 0.0
        self.zeros: Any = 0
        self.maximum: Any = -np.inf

    def add(self, output: Tensor) -> None:
        """Add a batch of outputs, (N, C, h, w) or (N, C)."""
        rows = output.detach().movedim(1, 0).flatten(1).double()
        count, mean = rows.shape[1], rows.mean(1)
        squares = (rows - mean[:, None]).square_().sum(1).cpu().numpy()
        difference = mean.cpu().numpy() - self.mean
        total = self.count + count
        self.mean = self.mean + difference * (count / total)
        self.squares = self.squares + squares + difference**2 * (self.count * count / total)
        self.zeros = self.zeros + (rows == 0).sum(1).cpu().numpy()
        self.maximum = np.maximum(self.maximum, rows.amax(1).cpu().numpy())
        self.count, self.pictures = total, self.pictures + len(output)

    def result(self, layer: str) -> ChannelStatistics:
        deviation = np.sqrt(self.squares / self.count)
        zeros = self.zeros / self.count
        return ChannelStatistics(layer, self.pictures, self.count, self.mean, deviation, zeros, self.maximum)


class _Shares:
    """The share of zeros in a layer's output, per picture."""

    def __init__(self) -> None:
        self.pictures = 0
        self.found: NDArray[np.float64] = np.zeros(0)

    def add(self, output: Tensor) -> None:
        """Add a batch of outputs, (N, ...)."""
        self.pictures += len(output)
        self.found = np.append(self.found, shares_of_zero(output))


def shares_of_zero(outputs: Tensor) -> NDArray[np.float64]:
    """Return the share of values that are exactly zero, (N,) 0 to 1, for outputs (N, ...).

    >>> shares_of_zero(torch.tensor([[0.0, 1.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0]]))
    array([0.5, 1. ])
    """
    return (outputs.flatten(1) == 0).double().mean(1).cpu().numpy()


@shows(ReadingKeywords, Reading)
def channel_statistics(
    network: Network,
    images: Picture | Iterable[Picture],
    layers: LayerLike | Iterable[LayerLike],
    *,
    batch: int = BATCH_SIZE,
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
    **reading: Unpack[ReadingKeywords],
) -> FolderStatistics:
    """Compute channel statistics of layers over any number of pictures, resized and cropped as the card says.

    Worker threads decode pictures ahead. Only float64 sums of the activations are kept. An unusable picture does not
    stop the others.

    Args:
        network: in eval mode and with a card, as `load` returns it; a head is not needed.
        images: one picture or several, each anything `read_picture` takes; `find_pictures` lists those of a folder.
        layers: as in `record_activations`.
        batch: batch size; halved when memory runs out.
        workers: decoding threads; defaults to one per core, at most 16.
        progress: called after each batch with the number of finished pictures.
        reading: as in `read_picture`.

    Raises:
        ValueError: no picture is usable (the message gives the first error); a layer is not in the network, is not run,
            or gives NaN or infinity; the network has no card, or is in training mode.

    >>> from convnets_torch import load
    >>> found = channel_statistics(load("alexnet.safetensors"), ["street.jpg", "none.jpg"], "relu_*")
    >>> found.layers[2].layer, found.layers[2].values, found.layers[2].mean.shape, found.errors[0][0]
    ('features.relu_3', 169, (48,), 'none.jpg')
    """
    network = as_network(network)
    names = find_layers(network, layers)
    running = {name: _Running() for name in names}
    how = Reading(True, **checked(reading, ReadingKeywords))

    def add(name: str, output: Tensor) -> None:
        if output.dim() < 2:
            raise ValueError(f"{name} gives {tuple(output.shape)}, which has no channels; name another layer")
        running[name].add(output)

    errors, notes = _run(network, images, running, add, batch, workers, how, progress)
    return FolderStatistics(tuple(running[name].result(name) for name in names), errors, notes)


@shows(ReadingKeywords, Reading)
def zero_shares(
    network: Network,
    images: Picture | Iterable[Picture],
    layer: LayerLike,
    *,
    batch: int = BATCH_SIZE,
    workers: int | None = None,
    **reading: Unpack[ReadingKeywords],
) -> ZeroShares:
    """Compute the share of zeros in each picture's embedding.

    Args:
        network, images, batch, workers, reading: as in `channel_statistics`.
        layer: one layer, such as `fc1` or `fc2` of VGG (the Keras names of the ReLUs), or pooled features.

    Raises:
        ValueError: as in `channel_statistics`; or `layer` matches several layers.

    >>> from convnets_torch import load
    >>> found = zero_shares(load("alexnet.safetensors"), "street.jpg", "head.relu_dense_2")
    >>> found.shares.shape, int(found.histogram(bins=10)[0].sum())
    ((1,), 1)
    """
    network = as_network(network)
    name, shares = find_layer(network, layer), _Shares()
    how = Reading(True, **checked(reading, ReadingKeywords))
    errors, _ = _run(network, images, {name: shares}, lambda _, output: shares.add(output), batch, workers, how)
    return ZeroShares(name, shares.found, errors)


def _run(
    network: Network,
    images: Picture | Iterable[Picture],
    sums: Mapping[str, _Running | _Shares],
    add: Callable[[str, Tensor], None],
    batch: int,
    workers: int | None,
    reading: Reading,
    progress: Callable[[int], None] | None = None,
) -> tuple[tuple[tuple[str, Exception], ...], tuple[str, ...]]:
    """Add the layers' outputs to `sums`; return (name, error) of unusable pictures, and notes."""
    rule = ready_card(network).preprocessing
    if batch < 1:
        raise ValueError(f"batch is {batch}; give 1 picture or more")
    device, dtype = place_of(network)
    inputs = Inputs(rule, device, reading, exact=True)

    def record(name: str, output: Tensor) -> None:
        if not output.isfinite().all():
            raise ValueError(BROKEN.format(name))
        add(name, output)

    module = needed(observed(network, list(sums), record), list(sums))

    def run(items: list[Input]) -> list[None]:
        before = {name: dict(vars(each)) for name, each in sums.items()}
        try:
            with torch.inference_mode():
                module(inputs.images(items, dtype).contiguous())
        except (MemoryError, RuntimeError):  # undo the batch's sums; it is retried in halves
            for name, each in sums.items():
                vars(each).update(before[name])
            raise
        return [None] * len(items)

    errors: list[tuple[str, Exception]] = []
    notes: list[str] = []
    reported = 0
    rows = run_pictures(each_of(images), inputs.decode, run, batch=batch, threads=workers or THREADS)
    with contextlib.closing(rows):
        for row in rows:
            notes += row.notes
            if row.error is not None:
                errors.append((picture_name(row.picture), row.error))
            done = max(each.pictures for each in sums.values()) + len(errors)
            if progress is not None and done > reported:
                progress(done)
            reported = done
    if missing := [name for name, each in sums.items() if not each.pictures]:
        if errors:
            raise ValueError(f"none of {len(errors)} pictures could be used; the first: {errors[0][1]}")
        raise ValueError(
            f"no picture reached {missing[0]} of {type(network).__name__}; name pictures, or another layer"
        )
    return tuple(errors), tuple(notes)


def save_statistics(found: FolderStatistics, path: Output) -> None:
    """Write statistics as .json, as .csv (one row per channel), or as arrays in an .npz ("LAYER.mean", ...)."""
    WRITER.write(path, found)


def _write_csv(path: Path, found: FolderStatistics) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("layer", "channel", *MEASURES, "dead"))
        for each in found.layers:
            columns = [getattr(each, name) for name in MEASURES]
            rows.writerows(
                (cell(each.layer), channel, *(repr(float(value)) for value in values), int(each.dead[channel]))
                for channel, values in enumerate(zip(*columns, strict=True))
            )


def _write_arrays(path: Path, found: FolderStatistics) -> None:
    names = (*MEASURES, "dead")
    write_npz(path, {f"{each.layer}.{name}": getattr(each, name) for each in found.layers for name in names})


def _write_json(path: Path, found: FolderStatistics) -> None:
    path.write_text(json.dumps(as_json(found), indent=1) + "\n", encoding="utf-8")


WRITER = Writer("statistics", {".json": _write_json, ".csv": _write_csv, ".npz": _write_arrays})


def as_json(found: FolderStatistics) -> dict[str, Any]:
    """Return statistics as plain data for JSON."""
    return {
        "layers": [
            {
                **{name: getattr(each, name) for name in ("layer", "pictures", "values")},
                **{name: getattr(each, name).tolist() for name in MEASURES},
                "dead": np.flatnonzero(each.dead).tolist(),
            }
            for each in found.layers
        ],
        "errors": [{"image": name, "error": str(error)} for name, error in found.errors],
    }
