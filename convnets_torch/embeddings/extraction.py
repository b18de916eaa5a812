"""Feature vectors of pictures, from any layer, pooled to one vector a picture."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args, overload

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from convnets_torch.card import Card
from convnets_torch.explain.activations import BROKEN, Reached, observed
from convnets_torch.explain.layer_names import LayerLike, find_layer, needed, whole
from convnets_torch.images.decoding import Picture, Reading, warn
from convnets_torch.images.levels import Background, Depth
from convnets_torch.inference.batching import in_batches
from convnets_torch.inference.pipeline import Decoder, Predicted, Result, batch_for, each_row, predicted
from convnets_torch.networks import Network
from convnets_torch.networks.network import NO_HEAD, check_eval_mode
from convnets_torch.networks.tracing import unwrapped
from convnets_torch.text import check_choice
from convnets_torch.weights import last_dense

Pool = Literal["avg", "max", "flatten", "gem"]

POWER = 3.0  # of the generalised mean
LEAST = 1e-6  # to which values below are raised before it


def pooled(maps: Tensor, pool: Pool = "avg") -> Tensor:
    """Maps as vectors.

    Args:
        maps: (N, C, h, w).
        pool: "avg" and "max": the mean and the largest value of each channel; "gem": the generalised mean, the cube
            root of the mean of cubes, of values raised to 1e-6 where they are below, so that nothing of it is zero;
            "flatten": all values, channel by channel, each row by row (Keras's order is another: cell by cell).

    Returns:
        (N, C), or (N, C * h * w) for "flatten"; float32, float64 from such maps ("flatten" leaves the precision).

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
    """In which kind of number vectors of a tensor are given: float64 stays, all else becomes float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


Layers: TypeAlias = "LayerLike | list[str] | list[LayerLike] | tuple[LayerLike, ...] | None"


@dataclass(frozen=True, eq=False)
class Embedded(Result[dict[str, Tensor]]):
    """What became of one picture.

    Attributes:
        vectors: name of the layer, as it was asked for -> (values,) float32 on the CPU; empty where there is an error.
            They are tensors, as those of `embed` and `predict` are; `vector.numpy()` is the same memory as an array.
        logits: (classes,) float32 on the CPU, as `predict` gives them; None where they were not asked for, or where
            there is an error.
        seen: what `look` returned for it; None where there is none, or an error.
        picture, error, remarks: as in `Result`.
    """

    logits: Tensor | None = None
    seen: Any = None

    @property
    def vectors(self) -> dict[str, Tensor]:
        """The `value`; empty where there is an error."""
        return self.value or {}

    @property
    def vector(self) -> Tensor | None:
        """The vector of the only layer, (values,); None where there is an error.

        Raises:
            ValueError: there are several layers.
        """
        if len(self.vectors) > 1:
            raise ValueError(f"there are vectors of several layers ({', '.join(self.vectors)}); take one of `vectors`")
        return next(iter(self.vectors.values()), None)


class Embedder(nn.Module):
    """A network that gives vectors; `predict` and loops of one's own run it as they run a network.

    It runs no further than the deepest layer that is wanted. The network's tensors are shared, not copied; threads may
    run the embedder, and the network, at once.

    Attributes:
        network: as it was given.
        card: the network's; None where it has none.
        names: of the layers, as they were asked for, in that order; "input of head.dense_3" and the like by default.
        widths: how many values each of them has, and then the logits; empty until the first images ran.

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
        """Args are those of `embed_each`.

        Raises:
            ValueError: the pool is not known, a layer is not in the network or means several, or the network has no
                head for the logits, or no dense layer for the default.
        """
        super().__init__()
        network = unwrapped(network)  # compiled code runs no hooks
        check_choice(pool, get_args(Pool), "pool")
        headless = isinstance(network, Network) and network.head is None
        if logits and headless:
            raise ValueError(NO_HEAD)
        self.network, self.pool, self.normalize, self.logits = network, pool, normalize, logits
        self.card = getattr(network, "card", None)
        self._dense: tuple[str, ...] = ()  # layers whose input is wanted
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
        self.training = False  # its own alone; `predict` looks at those of the network's modules

    def forward(self, images: Tensor) -> Tensor:
        """Vectors of all layers side by side, then the logits if they were asked for.

        Args:
            images: (N, 3, H, W) as the network takes them.

        Returns:
            (N, values) float32, float64 from such networks, on the network's device; `split` takes it apart.

        Raises:
            ValueError: a layer gives neither maps nor vectors, or does not run.
        """
        parts = list(self._run(images))
        self.widths = tuple(part.shape[1] for part in parts)
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def split(self, values: Tensor) -> tuple[dict[str, Tensor], Tensor | None]:
        """What `forward` gave, (..., values), as name -> vectors, and the logits or None; all share its memory."""
        parts = torch.split(values, list(self.widths), -1)
        return dict(zip(self.names, parts, strict=False)), parts[-1] if self.logits else None

    def _run(self, images: Tensor) -> Iterable[Tensor]:
        """Vectors (N, values) in the order of `names`, and the logits."""
        places = tuple(dict.fromkeys(self._modules_of.values()))
        found: dict[str, Tensor] = {}

        def see(name: str, output: Tensor) -> None:
            if name not in found:  # a layer that is called several times stands for its first call
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
        """(N, values), memory of its own: the next layer may overwrite what it is made of."""
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
        """What tells vectors of one kind from others: the network, its card, layers, pool, and whether normalised."""
        return {
            "network": type(self.network).__name__ if self.card is None else self.card.network,
            "card": "" if self.card is None else self.card.to_json(),
            "layers": json.dumps(self.names),
            "pool": self.pool,
            "normalize": json.dumps(self.normalize),
        }

    def extra_repr(self) -> str:
        return f"{', '.join(self.names)}, pool={self.pool}, normalize={self.normalize}"


@overload
def embed(
    network: nn.Module,
    images: Tensor | Picture | Iterable[Picture],
    layer: LayerLike | None = None,
    pool: Pool = "avg",
    normalize: bool = False,
) -> Tensor: ...
@overload
def embed(
    network: nn.Module,
    images: Tensor | Picture | Iterable[Picture],
    layer: list[str] | list[LayerLike] | tuple[LayerLike, ...],
    pool: Pool = "avg",
    normalize: bool = False,
) -> dict[str, Tensor]: ...
def embed(
    network: nn.Module,
    images: Tensor | Picture | Iterable[Picture],
    layer: Layers = None,
    pool: Pool = "avg",
    normalize: bool = False,
) -> Tensor | dict[str, Tensor]:
    """Turn images into vectors.

    By default a vector is what the last dense layer reads: 4096 values for AlexNet and VGG, 2048 for ResNet50 and
    InceptionV3, 1280 for EfficientNet-Lite0; of a network without a head it is the pooled feature map.

    Args:
        network: in eval mode; one of this library, prepared or not, with a head or without, or any other module, such
            as torchvision's. Of a prepared one, a convolution gives what comes after its normalisation and activation.
        images: a tensor (N, 3, H, W) as the network takes it; or pictures, whatever `predict` takes, each resized and
            cropped as the network's card says. A tensor (3, H, W) is a picture.
        layer: its name, or Keras's, as `find_layer` takes it; or several in a list: all of them in one pass. The
            network runs no further than the deepest of them. One that is called several times stands for its first
            call.
        pool: how a map (C, h, w) becomes a vector, as `pooled` says; vectors are taken as they are.
        normalize: divide each vector by its length; one of zeros alone stays as it is.

    Returns:
        (N, values), float32, without gradients (`record_activations` has them): for a tensor on the network's device,
        and float64 from such networks; for pictures on the CPU. With several layers a dict of these: name as it was
        given -> vectors.

    Raises:
        OSError: a picture is missing or broken; `embed_each` goes on with the others.
        ValueError: there are no images, or they have another size than the head takes; a layer is not in the network,
            means several, or gives neither maps nor vectors; activations are NaN or infinite; the network is in
            training mode or has, for pictures, no card.

    Warns:
        PictureWarning: as `read_picture` does.
        MemoryWarning: memory ran out, and the work goes on in smaller batches.

    >>> from convnets_torch import load
    >>> network = load("alexnet.safetensors")
    >>> embed(network, "street.jpg").shape
    torch.Size([1, 40])
    >>> vectors = embed(network, torch.rand(2, 3, 227, 227), ["relu_3", "pool_5"], pool="max")
    >>> vectors["relu_3"].shape, vectors["pool_5"].shape
    (torch.Size([2, 48]), torch.Size([2, 32]))
    """
    if not (isinstance(images, Tensor) and images.dim() == 4):
        return _of_pictures(network, images, layer, pool, normalize)
    embedder = Embedder(network, layer, pool, normalize)
    check_eval_mode(embedder)
    if not len(images):
        raise ValueError("there are no images; give one or more")
    placed = images.to(next(network.parameters()))
    with torch.no_grad():
        parts = list(in_batches(lambda items: embedder(placed[items.start : items.stop]), len(images), len(images)))
    vectors, _ = embedder.split(torch.cat(parts))
    _check_finite(vectors)
    return vectors[embedder.names[0]] if layer is None or isinstance(layer, str | nn.Module) else vectors


def embed_each(
    network: nn.Module,
    pictures: Picture | Iterable[Picture],
    layer: Layers = None,
    pool: Pool = "avg",
    normalize: bool = False,
    *,
    logits: bool = False,
    batch: int | Literal["auto"] = "auto",
    workers: int | None = None,
    exact: bool = False,
    max_pixels: int | None = None,
    allow_truncated: bool = False,
    depth: Depth = None,
    background: Background = None,
    decoder: Decoder = "pillow",
    look: Callable[[Image.Image], object] | None = None,
) -> Generator[Embedded, None, None]:
    """The vectors of any number of pictures; one that cannot be used does not stop the others.

    They go through `predict`, so what it says of threads, batches, memory and order holds here.

    Args:
        network, layer, pool, normalize: as in `embed`; the network has a card.
        logits: give those as well, from the same pass, which then goes through the whole network.
        pictures, batch, workers, exact, max_pixels, allow_truncated, depth, background, decoder, look: as in
            `predict`.

    Returns:
        A generator of one `Embedded` per picture, in the order given; results come in bursts. `close()` stops it early
        and leaves no thread behind.

    Raises:
        ValueError: at once, when a layer, the pool or an option is no good, the network has no card or is in training
            mode, or has no head for the logits; later, when activations are NaN or infinite.
        ImportError: at once, when the decoder is not installed.

    Warns:
        MemoryWarning: memory ran out, and the work goes on in smaller batches.

    >>> from convnets_torch import load
    >>> for row in embed_each(load("alexnet.safetensors"), ["street.jpg", "none.jpg"], logits=True):
    ...     print(row.picture, row.vector is not None, row.logits is not None, row.error)
    street.jpg True True None
    none.jpg False False none.jpg does not exist; name a file
    """
    embedder = Embedder(network, layer, pool, normalize, logits=logits)
    sized = embedder.network if isinstance(embedder.network, Network) else embedder  # whose memory can be foretold
    rows = predicted(
        embedder,
        pictures,
        Reading(True, max_pixels, allow_truncated, depth, background),
        batch=batch_for(sized) if batch == "auto" else batch,
        workers=workers,
        exact=exact,
        decoder=decoder,
        look=look,
    )

    def embedded(row: Predicted) -> Embedded:
        if row.value is None:
            return Embedded(row.picture, None, row.error, row.remarks)
        vectors, found = embedder.split(row.value)
        _check_finite(vectors)
        # Each may be kept without the others.
        own = {name: vector.clone() for name, vector in vectors.items()}
        return Embedded(row.picture, own, None, row.remarks, None if found is None else found.clone(), row.seen)

    return each_row(rows, embedded)


def _input_of(name: str) -> str:
    return f"input of {name}" if name else "input"


def _of_pictures(
    network: nn.Module, images: Any, layer: Layers, pool: Pool, normalize: bool
) -> Tensor | dict[str, Tensor]:
    """The vectors of all pictures; the first bad one is raised."""
    rows: list[dict[str, Tensor]] = []
    with contextlib.closing(embed_each(network, images, layer, pool, normalize)) as entries:
        for entry in entries:
            if entry.error is not None:
                raise entry.error
            warn(entry.remarks)
            rows.append(entry.vectors)
    if not rows:
        raise ValueError("there are no images; give one or more")
    vectors = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return next(iter(vectors.values())) if layer is None or isinstance(layer, str | nn.Module) else vectors


def _check_finite(vectors: dict[str, Tensor]) -> None:
    for name, vector in vectors.items():
        if not vector.isfinite().all():
            raise ValueError(BROKEN.format(name))
