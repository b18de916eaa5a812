"""Feature vectors of pictures from any layer, pooled to one vector per picture."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Unpack

from convnets_torch.card import Card
from convnets_torch.explain.activations import BROKEN, Reached, observed
from convnets_torch.explain.layer_names import LayerLike, find_layer, needed, whole
from convnets_torch.images.decoding import AS_IS, Picture, Reading, ReadingKeywords, warn
from convnets_torch.inference.batching import batches_with_retry
from convnets_torch.inference.pipeline import Decoder, Predicted, Result, batch_for, each_row, predicted
from convnets_torch.networks import Network
from convnets_torch.networks.network import NO_HEAD, check_eval_mode
from convnets_torch.networks.tracing import unwrapped
from convnets_torch.options import checked, renamed, shows
from convnets_torch.text import check_choice
from convnets_torch.weights import last_dense

Pool = Literal["avg", "max", "flatten", "gem"]

POWER = 3.0  # exponent of generalised-mean (GeM) pooling
LEAST = 1e-6  # lower clamp of GeM pooling


def pooled(maps: Tensor, pool: Pool = "avg") -> Tensor:
    """Pool feature maps to vectors.

    Args:
        maps: (N, C, h, w).
        pool: "avg" or "max", the mean or maximum of each channel; "gem", the generalised mean: the cube root of the
            mean of cubes of values clamped to at least 1e-6, which is never zero; "flatten", all values, channel by
            channel and row by row (Keras flattens cell by cell instead).

    Returns:
        (N, C), or (N, C * h * w) for "flatten"; float32, or float64 for float64 maps ("flatten" keeps the dtype).

    Raises:
        ValueError: the pool is not known.

    Source of "gem": Fine-tuning CNN Image Retrieval with No Human Annotation, arXiv:1711.02512, section 3.2.

    >>> maps = torch.tensor([[[[0.0, 2.0], [0.0, 2.0]]]])
    >>> [pooled(maps, pool).tolist() for pool in ("avg", "max", "flatten")]
    [[[1.0]], [[2.0]], [[0.0, 2.0, 0.0, 2.0]]]
    >>> round(float(pooled(maps, "gem")) ** 3, 4)
    4.0
    """
    check_choice(pool, get_args(Pool), "pool")
    if pool == "flatten":
        return maps.flatten(1)
    if pool == "max":
        return maps.amax((2, 3)).to(numbers_of(maps))
    if pool == "avg":
        return maps.mean((2, 3), dtype=numbers_of(maps))
    return maps.to(numbers_of(maps)).clamp(min=LEAST).pow(POWER).mean((2, 3)).pow(1 / POWER)


def numbers_of(tensor: Tensor) -> torch.dtype:
    """Return the dtype of vectors made from a tensor: float64 for float64, otherwise float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


Layers: TypeAlias = "LayerLike | Sequence[LayerLike] | None"


@dataclass(frozen=True, eq=False)
class Embedded(Result[dict[str, Tensor]]):
    """Vectors of one picture, or the error.

    Attributes:
        vectors: layer name, as requested -> (values,) float32 tensor on the CPU; empty on error. `vector.numpy()`
            shares its memory.
        logits: (classes,) float32 on the CPU, as from `predict`; None if not requested or on error.
        seen: return value of `look` for this picture; None without `look` or on error.
        picture, error, notes: as in `Result`.
    """

    logits: Tensor | None = None
    seen: Any = None

    @property
    def vectors(self) -> dict[str, Tensor]:
        """`value`, or an empty dict on error."""
        return self.value or {}

    @property
    def vector(self) -> Tensor | None:
        """The vector (values,) if there is a single layer; None on error.

        Raises:
            ValueError: there are several layers.
        """
        if len(self.vectors) > 1:
            raise ValueError(f"there are vectors of several layers ({', '.join(self.vectors)}); take one of `vectors`")
        return next(iter(self.vectors.values()), None)


class Embedder(nn.Module):
    """A module whose output is the vectors of a network; use it with `predict` or in a custom loop.

    It runs the network only up to the deepest requested layer. Parameters are shared, not copied. The embedder and the
    network may run in several threads at once.

    Attributes:
        network: the wrapped network.
        card: card of the network, or None.
        names: layer names, as requested and in that order; by default such as "input of head.dense_3".
        widths: number of values of each layer, then of the logits; empty before the first forward pass.

    >>> from convnets_torch import load
    >>> embedder = Embedder(load("alexnet.safetensors"), logits=True)
    >>> values = embedder(torch.rand(2, 3, 227, 227))
    >>> vectors, logits = embedder.split(values)
    >>> embedder.names, vectors["input of head.dense_3"].shape, logits.shape
    (('input of head.dense_3',), torch.Size([2, 40]), torch.Size([2, 1000]))
    """

    card: Card | None

    def __init__(
        self,
        network: nn.Module,
        layer: Layers = None,
        pool: Pool = "avg",
        normalize: bool = False,
        *,
        logits: bool = False,
    ) -> None:
        """Arguments are as in `embed_each`.

        Raises:
            ValueError: the pool is unknown; a layer is not in the network or is ambiguous; the network has no head for
                the logits, or no dense layer for the default.
        """
        super().__init__()
        network = unwrapped(network)  # compiled code runs no hooks
        check_choice(pool, get_args(Pool), "pool")
        headless = isinstance(network, Network) and network.head is None
        if logits and headless:
            raise ValueError(NO_HEAD)
        self.network, self.pool, self.normalize, self.logits = network, pool, normalize, logits
        self.card = getattr(network, "card", None)
        self._dense: tuple[str, ...] = ()  # layers whose input is the vector
        if layer is None and not headless:
            self._dense = (last_dense(network),)
            self.names: tuple[str, ...] = (_input_of(self._dense[0]),)
            self._modules_of = {}
        else:
            asked = ["features"] if layer is None else [layer] if isinstance(layer, str | nn.Module) else layer
            names = (each if isinstance(each, str) else find_layer(network, each) for each in asked)
            self.names = tuple(dict.fromkeys(names))
            if not self.names:
                raise ValueError("no layer is named; name one or more, or leave `layer` out")
            self._modules_of = {name: find_layer(network, name) for name in self.names}
        self.widths: tuple[int, ...] = ()
        self.training = False  # of this module only; `predict` checks the network's modules

    def forward(self, images: Tensor) -> Tensor:
        """Concatenate the vectors of all layers, and the logits if requested.

        Args:
            images: (N, 3, H, W), preprocessed for the network.

        Returns:
            (N, values) float32, or float64 for a float64 network, on the network's device; see `split`.

        Raises:
            ValueError: a layer outputs neither maps nor vectors, or does not run.
        """
        parts = list(self._run(images))
        self.widths = tuple(part.shape[1] for part in parts)
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def split(self, values: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """Split the output of `forward`, (..., values), into views: name -> vectors, and the logits or None."""
        parts = torch.split(values, list(self.widths), -1)
        return dict(zip(self.names, parts, strict=False)), parts[-1] if self.logits else None

    def _run(self, images: Tensor) -> Iterable[Tensor]:
        """Vectors (N, values) in the order of `names`, and the logits."""
        places = tuple(dict.fromkeys(self._modules_of.values()))
        found: dict[str, Tensor] = {}

        def see(name: str, output: Tensor) -> None:
            if name not in found:  # the first call of a layer counts
                found[name] = self._vectors(name, output)
            if not self.logits and len(found) == len(places) + len(self._dense):
                raise Reached

        def see_input(name: str, values: Tensor) -> None:
            see(_input_of(name), values)

        network = observed(self.network, places, see, self._dense, see_input)
        run = whole(network) if self.logits or self._dense else needed(network, places)
        with contextlib.suppress(Reached):
            logits = run(images)
        wanted = [self._modules_of.get(name, name) for name in self.names]
        if missing := [name for name in wanted if name not in found]:
            kind = type(self.network).__name__
            raise ValueError(f"{missing[0]} is not run by {kind}, or was compiled away; name another layer")
        return [*(found[name] for name in wanted), *([logits.to(numbers_of(logits))] if self.logits else [])]

    def _vectors(self, name: str, output: Tensor) -> Tensor:
        """Return (N, values) as a copy: the next layer may overwrite `output` in place."""
        if output.dim() == 4:
            output = pooled(output, self.pool)
        elif output.dim() != 2:
            raise ValueError(
                f"{name} gives {tuple(output.shape[1:])} for an image, neither a map (channels, height, width) nor a"
                " vector; name another layer"
            )
        vectors = output.detach().to(numbers_of(output), copy=True)
        return F.normalize(vectors, dim=1) if self.normalize else vectors

    @property
    def about(self) -> dict[str, str]:
        """What identifies the kind of vectors: network, card, layers, pool and normalisation, as text."""
        return {
            "network": type(self.network).__name__ if self.card is None else self.card.network,
            "card": "" if self.card is None else self.card.to_json(),
            "layers": json.dumps(self.names),
            "pool": self.pool,
            "normalize": json.dumps(self.normalize),
        }

    def extra_repr(self) -> str:
        return f"{', '.join(self.names)}, pool={self.pool}, normalize={self.normalize}"


def embed(
    network: nn.Module,
    images: Tensor | Picture | Iterable[Picture],
    layer: LayerLike | None = None,
    pool: Pool = "avg",
    normalize: bool = False,
) -> Tensor:
    """Compute feature vectors of images.

    By default a vector is the input of the last dense layer: 4096 values for AlexNet and VGG, 2048 for ResNet50 and
    InceptionV3, 1280 for EfficientNet-Lite0. For a network without a head it is the pooled feature map.

    Args:
        network: in eval mode: a network of this library, prepared or not, with or without a head, or any other module,
            such as torchvision's. In a prepared network the output of a convolution includes the normalisation and
            activation fused into it.
        images: a tensor (N, 3, H, W), preprocessed for the network; or pictures as `predict` takes them, resized and
            cropped as the network's card says. A tensor (3, H, W) is a picture.
        layer: layer name, or its Keras name, as in `find_layer`. The network runs only up to this layer. If a layer is
            called several times, its first call counts.
        pool: how a map (C, h, w) becomes a vector, as in `pooled`; outputs that are vectors are not pooled.
        normalize: L2-normalise each vector; a zero vector stays zero.

    Returns:
        (N, values) without gradients (use `record_activations` for these). For a tensor: float32, or float64 for a
        float64 network, on the network's device. For pictures: float32 on the CPU.

    Raises:
        OSError: a picture is missing or broken; `embed_each` continues with the others.
        ValueError: there are no images, or their size does not fit the head; a layer is not in the network, is
            ambiguous, or outputs neither maps nor vectors; activations are NaN or infinite; the network is in training
            mode or, for pictures, has no card.

    Warns:
        PictureWarning: as in `read_picture`.
        MemoryWarning: memory ran out; work continues in smaller batches.

    >>> from convnets_torch import load
    >>> embed(load("alexnet.safetensors"), "street.jpg").shape
    torch.Size([1, 40])
    """
    if layer is not None and not isinstance(layer, str | nn.Module):
        warnings.warn(
            "embed(...) of several layers is now embed_layers(...); this goes with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        return embed_layers(network, images, layer, pool, normalize)
    [vectors] = _embedded(Embedder(network, layer, pool, normalize), images).values()
    return vectors


def embed_layers(
    network: nn.Module,
    images: Tensor | Picture | Iterable[Picture],
    layers: Iterable[LayerLike],
    pool: Pool = "avg",
    normalize: bool = False,
) -> dict[str, Tensor]:
    """Compute feature vectors of images from several layers, in one pass up to the deepest of them.

    Arguments and errors are as for `embed`.

    Returns:
        Layer name, as requested -> (N, values).

    >>> from convnets_torch import load
    >>> vectors = embed_layers(load("alexnet.safetensors"), torch.rand(2, 3, 227, 227), ["relu_3", "pool_5"], "max")
    >>> vectors["relu_3"].shape, vectors["pool_5"].shape
    (torch.Size([2, 48]), torch.Size([2, 32]))
    """
    return _embedded(Embedder(network, [*layers], pool, normalize), images)


@renamed(pictures="images")
@shows(ReadingKeywords, Reading)
def embed_each(
    network: nn.Module,
    images: Picture | Iterable[Picture],
    layer: Layers = None,
    pool: Pool = "avg",
    normalize: bool = False,
    *,
    logits: bool = False,
    batch: int | Literal["auto"] = "auto",
    workers: int | None = None,
    exact: bool = False,
    decoder: Decoder = "pillow",
    look: Callable[[Image.Image], object] | None = None,
    **reading: Unpack[ReadingKeywords],
) -> Generator[Embedded, None, None]:
    """Compute feature vectors of any number of pictures; a bad picture does not stop the others.

    Threads, batches, memory and order are as in `predict`.

    Args:
        network, pool, normalize: as for `embed`; the network must have a card.
        layer: a layer as for `embed`, or several, all computed in one pass.
        logits: also return the logits, from the same pass, which then runs the whole network.
        images, batch, workers, exact, decoder, look: as for `predict`.
        **reading: as for `read_picture`.

    Returns:
        A generator of one `Embedded` per picture, in order; results come in bursts. `close()` stops it early and leaves
        no thread behind.

    Raises:
        ValueError: immediately, if a layer, the pool or an option is invalid, or if the network has no card, is in
            training mode or has no head for the logits; later, if activations are NaN or infinite.
        ImportError: immediately, if the decoder is not installed.

    Warns:
        MemoryWarning: memory ran out; work continues in smaller batches.

    >>> from convnets_torch import load
    >>> for row in embed_each(load("alexnet.safetensors"), ["street.jpg", "none.jpg"], logits=True):
    ...     print(row.picture, row.vector is not None, row.logits is not None, row.error)
    street.jpg True True None
    none.jpg False False none.jpg does not exist; name a file
    """
    files = Reading(**checked(reading, ReadingKeywords))
    embedder = Embedder(network, layer, pool, normalize, logits=logits)
    return embedded(embedder, images, files, batch, workers, exact, decoder, look)


def embedded(
    embedder: Embedder,
    images: Picture | Iterable[Picture],
    reading: Reading = AS_IS,
    batch: int | Literal["auto"] = "auto",
    workers: int | None = None,
    exact: bool = False,
    decoder: Decoder = "pillow",
    look: Callable[[Image.Image], object] | None = None,
    fill: bool = False,
) -> Generator[Embedded, None, None]:
    """Run `embed_each` with an embedder and with its reading options in one object; `fill` is as in `predicted`."""
    if batch == "auto":  # memory is estimated for a Network
        batch = batch_for(embedder.network if isinstance(embedder.network, Network) else embedder)
    rows = predicted(embedder, images, reading, batch, workers, exact, decoder, on_decode=look, fill=fill)

    def row_of(row: Predicted) -> Embedded:
        if row.value is None:
            return Embedded(row.picture, None, row.error, row.notes)
        vectors, found = embedder.split(row.value)
        _check_finite(vectors)
        own = {name: vector.clone() for name, vector in vectors.items()}  # so that keeping one does not keep the batch
        return Embedded(row.picture, own, None, row.notes, None if found is None else found.clone(), row.extra)

    return each_row(rows, row_of)


def stacked(rows: Generator[Embedded, None, None]) -> dict[str, Tensor]:
    """Return the vectors (N, values) of all rows by layer, and show their notes; raise the first error."""
    found: list[dict[str, Tensor]] = []
    with contextlib.closing(rows):
        for row in rows:
            if row.error is not None:
                raise row.error
            warn(row.notes)
            found.append(row.vectors)
    if not found:
        raise ValueError("there are no images; give one or more")
    return {name: torch.stack([vectors[name] for vectors in found]) for name in found[0]}


def top_class(logits: Tensor | None, card: Card) -> tuple[int | None, float | None]:
    """Return the most probable class and its probability; None without logits, or if these give no probabilities."""
    from convnets_torch.inference.classification import probabilities

    if logits is None:
        return None, None
    if card.activation == "none":
        return int(logits.argmax()), None
    chances = probabilities(logits[None], card)[0]
    class_id = int(chances.argmax())
    return class_id, float(chances[class_id])


def _embedded(embedder: Embedder, images: Any) -> dict[str, Tensor]:
    """Embed a preprocessed batch or pictures."""
    if not (isinstance(images, Tensor) and images.dim() == 4):
        return stacked(embedded(embedder, images))
    check_eval_mode(embedder)
    if not len(images):
        raise ValueError("there are no images; give one or more")
    placed = images.to(next(embedder.parameters()))
    with torch.no_grad():
        parts = batches_with_retry(lambda items: embedder(placed[items.start : items.stop]), len(images), len(images))
        found = torch.cat(list(parts))
    vectors, _ = embedder.split(found)
    _check_finite(vectors)
    return vectors


def _input_of(name: str) -> str:
    return f"input of {name}" if name else "input"


def _check_finite(vectors: dict[str, Tensor]) -> None:
    for name, vector in vectors.items():
        if not vector.isfinite().all():
            raise ValueError(BROKEN.format(name))
