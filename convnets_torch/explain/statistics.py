"""What channels do over many pictures: means, deviations, zeros, and which of them are dead."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from convnets_torch.explain.activations import BROKEN, observed
from convnets_torch.explain.layer_names import LayerLike, find_layer, find_layers, needed
from convnets_torch.files import Output, check_writable, path_of, replacing, to_open_files
from convnets_torch.images.decoding import Picture, Reading, decode, picture_name
from convnets_torch.images.levels import Background, Depth
from convnets_torch.inference.batching import in_batches
from convnets_torch.inference.classification import ready_card, square_input, to_parameters
from convnets_torch.inference.pipeline import THREADS, ahead, each_of
from convnets_torch.networks import Network
from convnets_torch.networks.network import as_network
from convnets_torch.text import cell
from convnets_torch.visualization.charts import draw_histogram

BATCH = 16  # pictures that go through the network together
AHEAD = 3 * BATCH  # pictures that are decoded before the network asks for them
ENDINGS = (".json", ".csv", ".npz")
COLUMNS = ("layer", "channel", "mean", "standard_deviation", "zeros", "maximum", "dead")
BINS = 20


@dataclass(frozen=True, eq=False)
class ChannelStatistics:
    """What the channels of one layer gave over pictures and cells.

    Attributes:
        layer: name of the module.
        pictures: how many went in.
        values: of each channel: pictures times cells.
        mean, standard_deviation: (channels,) float64; the deviation is that of all values (divided by their number).
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
        """Which channels were never above zero, (channels,)."""
        return self.maximum <= 0


@dataclass(frozen=True, eq=False)
class ZeroShares:
    """How much of an embedding is zero.

    Attributes:
        layer: name of the module.
        shares: of each picture, the share of the layer's values that are exactly zero, (pictures,) 0 to 1.
        errors: pictures that could not be used, and why.
    """

    layer: str
    shares: NDArray[np.float64]
    errors: tuple[tuple[str, Exception], ...] = ()

    def histogram(self, bins: int = BINS) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Pictures in each of equal bins from 0 to 1, (bins,), and the edges of these, (bins + 1,)."""
        counts, edges = np.histogram(self.shares, bins=bins, range=(0, 1))
        return counts, edges

    def draw(self, bins: int = BINS, width: int = 800) -> Image.Image:
        """The histogram as a picture, `width` pixels wide, with its mean in words."""
        words = f"{self.layer}: share of values that are zero, in {len(self.shares)} pictures"
        mean = f"mean {self.shares.mean():.3f}, from {self.shares.min():.3f} to {self.shares.max():.3f}"
        return draw_histogram(*self.histogram(bins), (words, mean), width)


@dataclass(frozen=True, eq=False)
class FolderStatistics:
    """Statistics of layers over pictures, and the pictures that could not be used.

    Attributes:
        layers: one for each layer, in the order in which they run.
        errors: pictures that could not be used, and why.
        remarks: sentences on what the owner of a picture may not expect.
    """

    layers: tuple[ChannelStatistics, ...]
    errors: tuple[tuple[str, Exception], ...] = ()
    remarks: tuple[str, ...] = ()


class _Running:
    """Moments of channels, merged batch by batch, in float64.

    Source: Chan, Golub, LeVeque: Algorithms for Computing the Sample Variance, The American Statistician 37 (1983),
    equations 2.1: sums over all pictures would lose the digits that small deviations around large means live in.
    """

    def __init__(self) -> None:
        self.pictures = self.count = 0
        self.mean: Any = 0.0
        self.squares: Any = 0.0
        self.zeros: Any = 0
        self.maximum: Any = -np.inf

    def add(self, output: Tensor) -> None:
        """A batch of outputs, (N, C, h, w) or (N, C)."""
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
    """Of each picture, how much of a layer's output is zero."""

    def __init__(self) -> None:
        self.found: NDArray[np.float64] = np.zeros(0)

    def add(self, output: Tensor) -> None:
        """A batch of outputs (N, ...)."""
        self.found = np.append(self.found, shares_of_zero(output))


def shares_of_zero(outputs: Tensor) -> NDArray[np.float64]:
    """Of each of outputs (N, ...), the share of values that are exactly zero, (N,) 0 to 1.

    >>> shares_of_zero(torch.tensor([[0.0, 1.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0]]))
    array([0.5, 1. ])
    """
    return (outputs.flatten(1) == 0).double().mean(1).cpu().numpy()


def _run_fitting(run: nn.Module, inputs: Tensor, sums: Mapping[str, _Running | _Shares]) -> None:
    """Run a batch, in smaller ones when memory runs out; what a failed one added is taken back."""

    def some(numbers: range) -> None:
        before = {name: dict(vars(each)) for name, each in sums.items()}
        try:
            with torch.inference_mode():
                run(inputs[numbers.start : numbers.stop])
        except (MemoryError, RuntimeError):
            for name, each in sums.items():
                vars(each).update(before[name])
            raise

    for _ in in_batches(some, len(inputs), len(inputs)):
        pass


def channel_statistics(
    network: Network,
    images: Picture | Iterable[Picture],
    layers: LayerLike | Iterable[LayerLike],
    *,
    batch: int = BATCH,
    workers: int | None = None,
    max_pixels: int | None = None,
    allow_truncated: bool = False,
    depth: Depth = None,
    background: Background = None,
    progress: Callable[[int], None] | None = None,
) -> FolderStatistics:
    """Statistics of the channels of layers over any number of pictures, each resized and cropped as the card says.

    Pictures are decoded ahead in threads and go through the network `batch` at a time, or fewer when memory runs
    out; of their activations only sums are kept, in float64. One that cannot be used does not stop the others.

    Args:
        network: in eval mode, with its card, as `load` gives it; it may be without a head.
        images: whatever `read_picture` takes, or several of these; `find_pictures` lists those of a folder.
        layers: as in `record_activations`.
        batch: pictures that go through the network together.
        workers: threads that decode; by default one for each core, at most 16.
        max_pixels, allow_truncated, depth, background: as in `read_picture`.
        progress: is told after each batch how many pictures are done.

    Raises:
        ValueError: no picture could be used, the first reason is given; a layer is not in the network, not reached
            or gives NaN or infinity; the network has no card, or is in training mode.

    >>> from convnets_torch import load
    >>> found = channel_statistics(load("alexnet.safetensors"), ["street.jpg", "none.jpg"], "relu_*")
    >>> found.layers[2].layer, found.layers[2].values, found.layers[2].mean.shape, found.errors[0][0]
    ('features.relu_3', 169, (48,), 'none.jpg')
    """
    network = as_network(network)
    names = find_layers(network, layers)
    running = {name: _Running() for name in names}
    errors: list[tuple[str, Exception]] = []
    remarks: list[str] = []
    read = partial(
        decode, reading=Reading(ready_card(network).preprocessing.exif, max_pixels, allow_truncated, depth, background)
    )
    batches = _batches(network, images, names, read, batch, workers, errors, remarks)

    def add(name: str, output: Tensor) -> None:
        _check_finite(name, output)
        running[name].add(_channels(name, output))

    run = needed(observed(network, names, add), names)
    with contextlib.closing(batches):
        for inputs in batches:
            _run_fitting(run, inputs, running)
            if progress is not None:
                progress(max(each.pictures for each in running.values()) + len(errors))
    if missing := [name for name in names if not running[name].pictures]:
        _refuse_none(errors, missing[0], network)
    return FolderStatistics(tuple(running[name].result(name) for name in names), tuple(errors), tuple(remarks))


def zero_shares(
    network: Network,
    images: Picture | Iterable[Picture],
    layer: LayerLike,
    *,
    batch: int = BATCH,
    workers: int | None = None,
    max_pixels: int | None = None,
    allow_truncated: bool = False,
    depth: Depth = None,
    background: Background = None,
) -> ZeroShares:
    """The proportion of zero-valued components of an embedding, for each of many pictures.

    Args:
        network, images, batch, workers, max_pixels, allow_truncated, depth, background: as in `channel_statistics`.
        layer: one layer, such as `fc1` or `fc2` of VGG (Keras's names of the ReLUs), or pooled features.

    Raises:
        ValueError: as in `channel_statistics`; or several layers are meant.

    >>> from convnets_torch import load
    >>> found = zero_shares(load("alexnet.safetensors"), "street.jpg", "head.relu_dense_2")
    >>> found.shares.shape, int(found.histogram(bins=10)[0].sum())
    ((1,), 1)
    """
    network = as_network(network)
    name = find_layer(network, layer)
    shares = _Shares()
    errors: list[tuple[str, Exception]] = []
    read = partial(
        decode, reading=Reading(ready_card(network).preprocessing.exif, max_pixels, allow_truncated, depth, background)
    )

    def see(name: str, output: Tensor) -> None:
        _check_finite(name, output)
        shares.add(output)

    batches = _batches(network, images, [name], read, batch, workers, errors, [])
    run = needed(observed(network, [name], see), [name])
    with contextlib.closing(batches):
        for inputs in batches:
            _run_fitting(run, inputs, {name: shares})
    if not shares.found.size:
        _refuse_none(errors, name, network)
    return ZeroShares(name, shares.found, tuple(errors))


@to_open_files(".json")
def save_statistics(found: FolderStatistics, path: Output) -> None:
    """Write statistics as .json, as .csv (a row for each channel), or as arrays in an .npz ("LAYER.mean", ...).

    Raises:
        ValueError: another file ending.
        OSError: `path` cannot be written.
    """
    path = path_of(path)
    check_statistics_output(path)
    ending = path.suffix.lower()
    with replacing(path) as temporary:
        if ending == ".json":
            temporary.write_text(json.dumps(as_json(found), indent=1) + "\n", encoding="utf-8")
        elif ending == ".csv":
            with temporary.open("w", encoding="utf-8", newline="") as file:
                rows = csv.writer(file, lineterminator="\n")
                rows.writerow(COLUMNS)
                for each in found.layers:
                    rows.writerows(
                        (cell(each.layer), channel, *(repr(float(value)) for value in values), int(each.dead[channel]))
                        for channel, values in enumerate(
                            zip(each.mean, each.standard_deviation, each.zeros, each.maximum, strict=True)
                        )
                    )
        else:
            names = ("mean", "standard_deviation", "zeros", "maximum", "dead")
            arrays = {f"{each.layer}.{name}": getattr(each, name) for each in found.layers for name in names}
            with temporary.open("wb") as file:
                np.savez_compressed(file, **arrays)


def as_json(found: FolderStatistics) -> dict[str, Any]:
    """Statistics as JSON can hold them."""
    return {
        "layers": [
            {
                "layer": each.layer,
                "pictures": each.pictures,
                "values": each.values,
                "mean": each.mean.tolist(),
                "standard_deviation": each.standard_deviation.tolist(),
                "zeros": each.zeros.tolist(),
                "maximum": each.maximum.tolist(),
                "dead": np.flatnonzero(each.dead).tolist(),
            }
            for each in found.layers
        ],
        "errors": [{"image": name, "error": str(error)} for name, error in found.errors],
    }


def check_statistics_output(path: Path) -> None:
    """Raise, before long work begins, when statistics cannot be written to `path`.

    Raises:
        ValueError: another ending than .json, .csv or .npz.
        OSError: `path` cannot be written.
    """
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"{path} has an unknown ending; statistics are written as {', '.join(ENDINGS)}")
    check_writable(path)


def _batches(
    network: Network,
    images: Picture | Iterable[Picture],
    names: list[str],
    read: Callable[..., Any],
    batch: int,
    workers: int | None,
    errors: list[tuple[str, Exception]],
    remarks: list[str],
) -> Generator[Tensor, None, None]:
    """Inputs (N, 3, H, W) of pictures that can be used; what is wrong with the others goes into `errors`."""
    card = ready_card(network)
    if batch < 1:
        raise ValueError(f"batch is {batch}; give how many pictures go through the network together, 1 or more")

    def prepare(picture: Picture) -> NDArray[np.float32] | Exception:
        try:
            decoded = read(picture)
            remarks.extend(decoded.remarks)
            return square_input(decoded.pixels, card)
        except (OSError, ValueError) as error:
            return error

    waiting: list[NDArray[np.float32]] = []
    with contextlib.closing(ahead(each_of(images), prepare, most=AHEAD, threads=workers or THREADS)) as entries:
        for picture, entry in entries:
            if isinstance(entry, Exception):
                errors.append((picture_name(picture), entry))
                continue
            waiting.append(entry)
            if len(waiting) == batch:
                yield to_parameters(np.stack(waiting), network)
                waiting = []
    if waiting:
        yield to_parameters(np.stack(waiting), network)


def _channels(name: str, output: Tensor) -> Tensor:
    if output.dim() < 2:
        raise ValueError(f"{name} gives {tuple(output.shape)}, which has no channels; name another layer")
    return output


def _check_finite(name: str, output: Tensor) -> None:
    if not output.isfinite().all():
        raise ValueError(BROKEN.format(name))


def _refuse_none(errors: list[tuple[str, Exception]], name: str, network: Network) -> None:
    if errors:
        raise ValueError(f"none of {len(errors)} pictures could be used; the first: {errors[0][1]}")
    raise ValueError(f"no picture reached {name} of {type(network).__name__}; name pictures, or another layer")
