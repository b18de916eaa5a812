"""Grad-CAM: which parts of a picture raise the score of a class.

Sources: Grad-CAM, arXiv:1610.02391; Grad-CAM++, arXiv:1710.11063; HiResCAM, arXiv:2011.08891; LayerCAM, IEEE
Transactions on Image Processing 30, 2021, pages 5875 to 5888.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import index
from typing import Literal, SupportsIndex, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from convnets_torch.explain.activations import observed
from convnets_torch.explain.gradcam_maps import GradCam, cam_cells
from convnets_torch.explain.layer_names import LayerLike, find_layer, last_convolution
from convnets_torch.images.decoding import Picture, Reading, ReadingKeywords, picture_name, pixels_of, warn
from convnets_torch.images.preprocessing import Pixels
from convnets_torch.inference.classification import card_of, probabilities
from convnets_torch.inference.pipeline import (
    THREADS,
    Input,
    Inputs,
    Result,
    each_of,
    each_row,
    expected_pixels,
    place_of,
    run_pictures,
)
from convnets_torch.networks import Network
from convnets_torch.networks.network import NO_HEAD, as_network, check_eval_mode
from convnets_torch.networks.tracing import replicate, unwrapped
from convnets_torch.options import checked, shows
from convnets_torch.text import ConvnetsTorchWarning, check_choice
from convnets_torch.wordnet.targets import Targets, checked_target, checked_targets, find_target

Method = Literal["gradcam", "gradcam++", "hirescam", "layercam"]


class CamWarning(ConvnetsTorchWarning):
    """A map is zero everywhere: no cell of the layer supports the target."""


@dataclass(frozen=True)
class Score:
    """The differentiable score that a map explains.

    Attributes:
        class_ids: the score is the log-sum-exp of their logits, which is the logit of their summed softmax
            probability; for a single class it is that class's logit.
        against: classes whose log-sum-exp is subtracted; empty by default.
    """

    class_ids: tuple[int, ...]
    against: tuple[int, ...] = ()

    def of(self, logits: Tensor) -> Tensor:
        """Map logits (N, classes) to scores (N).

        Raises:
            ValueError: there is no class, or a class id is out of range.

        >>> Score((0, 1), against=(2,)).of(torch.tensor([[1.0, 1.0, 0.0]]))
        tensor([1.6931])
        """
        if not self.class_ids:
            raise ValueError("a target has no class; name one or more")
        for class_id in (*self.class_ids, *self.against):
            if not 0 <= class_id < logits.shape[1]:
                raise ValueError(
                    f"class {class_id} is out of range for {logits.shape[1]} classes; give 0 to {logits.shape[1] - 1}"
                )
        score = logits[:, list(self.class_ids)].logsumexp(dim=1)
        return score - logits[:, list(self.against)].logsumexp(dim=1) if self.against else score


ScoreTargets: TypeAlias = "Sequence[int | Sequence[int] | Score] | None"


def cams(
    module: nn.Module,
    images: Tensor,
    targets: ScoreTargets = None,
    *,
    layer: LayerLike | None = None,
    method: Method = "gradcam",
) -> Tensor:
    """Compute class activation maps for several targets from one forward pass.

    The network runs without gradients up to the layer; only the rest is differentiated, once per target. The module
    is left unchanged, even after an error: no hooks, no `.grad`.

    Args:
        module: any module in eval mode that maps images to logits (N, classes).
        images: (N, 3, H, W), preprocessed for the module.
        targets: class ids, groups of class ids, or `Score`s, which can also contrast two groups; None for the class
            with the highest logit of each image.
        layer: the layer whose output (N, C, h, w) is explained, as in `find_layer`; if it is called several times,
            the last call counts. Defaults to the last convolution, which is known only for networks of this library.
        method: "gradcam" weights each channel's activations by the channel's mean gradient (equations 1 and 2).
            "gradcam++" weights them by a weighted sum of its positive gradients with one weight per cell (equation 19,
            which uses the exponential of the score and so needs no higher derivatives). "hirescam" weights every cell
            by its own gradient, "layercam" by its own positive gradient.

    Returns:
        Maps (targets, N, h, w), non-negative and not normalised, so comparable between targets and images. float64
        for float64 modules, otherwise float32; on the images' device. Negative values are clipped to 0, for "hirescam"
        too, although its paper keeps them.

    Raises:
        ValueError: the module is in training mode or has no head, the layer is unknown or has no cells, a target is
            not one of the classes, nothing after the layer is differentiable, or the maps are not finite.

    Warns:
        CamWarning: a map is zero everywhere.

    >>> from convnets_torch.networks import vgg16
    >>> narrow = vgg16(classes=10, widths=(2, 2, 4, 4, 8), hidden=(8, 8)).eval()
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore", CamWarning)  # weights are random
    ...     cams(narrow, torch.rand(1, 3, 224, 224), [3, (5, 6), Score((3,), against=(5, 6))]).shape
    torch.Size([3, 1, 14, 14])
    """
    maps, _ = cams_and_logits(module, images, targets, layer=layer, method=method)
    if empty := int((maps.flatten(2).amax(dim=2) == 0).sum()):
        count = maps.shape[0] * maps.shape[1]
        warnings.warn(
            f"{empty} of {count} maps {'is' if empty == 1 else 'are'} zero everywhere: no cell supports the target",
            CamWarning,
            stacklevel=2,
        )
    return maps


def cams_and_logits(
    module: nn.Module,
    images: Tensor,
    targets: ScoreTargets = None,
    *,
    layer: LayerLike | None = None,
    method: Method = "gradcam",
) -> tuple[Tensor, Tensor]:
    """Return the maps of `cams`, without its warning, and the logits (N, classes) of the same pass.

    Raises:
        ValueError: as `cams`.
    """
    module = unwrapped(module)
    name = checked_layer(module, layer)
    check_choice(method, METHODS, "method")
    with torch.inference_mode(False), torch.no_grad():
        images = images.clone() if images.is_inference() else images
        if isinstance(module, Network):  # faster; other modules may call view, which needs contiguous tensors
            images = images.contiguous(memory_format=torch.channels_last)
        leaf, logits = _run(module, images, name)
        with torch.enable_grad():
            scores = _scores(logits, targets)
        if not scores[0].requires_grad:
            raise ValueError(f"the outputs are not differentiable with respect to {name}; name another layer")
        cells = _at_least_float32(leaf.detach())
        maps = []
        for number, score in enumerate(scores, start=1):  # not vmap, which does not support all operations
            (gradients,) = torch.autograd.grad(score.sum(), leaf, retain_graph=number < len(scores), allow_unused=True)
            if gradients is None:
                raise ValueError(f"the outputs do not depend on {name}; name another layer")
            maps.append(METHODS[method](cells, _at_least_float32(gradients)).relu_())
        found = torch.stack(maps)
    if not found.isfinite().all():
        raise ValueError("the maps are NaN or infinite: the weights are broken, or too large for their precision")
    return found, logits.detach()


def _grad_cam(cells: Tensor, gradients: Tensor) -> Tensor:
    """Equations 1 and 2 of arXiv:1610.02391."""
    return torch.einsum("nchw,nc->nhw", cells, gradients.mean(dim=(2, 3)))


def _grad_cam_plus_plus(cells: Tensor, gradients: Tensor) -> Tensor:
    """Equation 19 of arXiv:1710.11063: a channel's weight is the sum of alpha times the positive gradient.

    alpha = g^2 / (2 g^2 + g^3 sum(A)) is computed as 1 / (2 + g sum(A)), whose denominator is at least 2 wherever the
    gradient is positive and the activations are not negative, so no epsilon is needed.
    """
    denominator = 2 + gradients * cells.sum(dim=(2, 3), keepdim=True)
    weights = (gradients.relu() / denominator).where(denominator != 0, 0).sum(dim=(2, 3))
    return torch.einsum("nchw,nc->nhw", cells, weights)


def _hires_cam(cells: Tensor, gradients: Tensor) -> Tensor:
    """Activations times gradients, summed over channels, as defined in arXiv:2011.08891."""
    return (cells * gradients).sum(dim=1)


def _layer_cam(cells: Tensor, gradients: Tensor) -> Tensor:
    """Activations times positive gradients, summed over channels, as defined in the LayerCAM paper."""
    return (cells * gradients.relu()).sum(dim=1)


# Activations (N, C, h, w) and gradients of the same shape -> maps (N, h, w), before negative values are clipped.
METHODS: dict[Method, Callable[[Tensor, Tensor], Tensor]] = {
    "gradcam": _grad_cam,
    "gradcam++": _grad_cam_plus_plus,
    "hirescam": _hires_cam,
    "layercam": _layer_cam,
}


def checked_layer(module: nn.Module, layer: LayerLike | None) -> str:
    """Return the name of the layer to explain, by default the last convolution.

    Raises:
        ValueError: the module is in training mode or has no head, or the layer is unknown.
    """
    check_eval_mode(module)
    if isinstance(module, Network) and module.head is None:
        raise ValueError(NO_HEAD)
    return last_convolution(module) if layer is None else find_layer(module, layer)


def _run(module: nn.Module, images: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Return the layer's output as a leaf that requires grad, and the logits; call it with gradients disabled."""
    leaves: list[Tensor] = []

    def cut(_: str, output: Tensor) -> Tensor:
        if output.ndim != 4 or output.shape[2] * output.shape[3] < 2:
            raise ValueError(
                f"{name} gives {tuple(output.shape[1:])}, not a map (channels, height, width) of 2 cells or more; name"
                " an earlier layer"
            )
        leaf = output.detach().clone() if output.is_inference() else output.detach()
        leaves[:] = [leaf.requires_grad_()]
        torch.set_grad_enabled(True)  # until the caller's no_grad block ends
        return leaf.clone()  # the next layer may overwrite its input

    logits = _without_inference_tensors(observed(module, [name], cut))(images)
    if not leaves:
        raise ValueError(f"{name} is not run by {type(module).__name__}; name another layer")
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{type(module).__name__} gives {given}, but needs to give one tensor of logits (N, classes)")
    if not logits.isfinite().all():
        raise ValueError("the network's outputs are NaN or infinite: its weights are broken, or too large for float16")
    return leaves[0], logits


def _without_inference_tensors(module: nn.Module) -> nn.Module:
    """Replace inference-mode parameters and buffers, which autograd rejects, by clones in a copy of the module."""
    if not any(tensor.is_inference() for tensor in [*module.parameters(), *module.buffers()]):
        return module
    copy, _ = replicate(module)
    for part in copy.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.is_inference():
                    tensors[name] = tensor.clone()  # type: ignore[assignment]
    return copy


def _scores(logits: Tensor, targets: ScoreTargets) -> list[Tensor]:
    """One score tensor (N) per target."""
    if targets is None:
        return [logits.max(dim=1).values]
    if not targets:
        raise ValueError("the list of targets is empty; name what to look for")
    scores = []
    for target in targets:
        if not isinstance(target, Score):
            target = Score((index(target),) if isinstance(target, SupportsIndex) else tuple(target))
        scores.append(target.of(logits))
    return scores


def _at_least_float32(values: Tensor) -> Tensor:
    """Convert to float32 or float64: means over cells lose too much in half precision."""
    return values if values.dtype == torch.float64 else values.float()


BATCH_SIZE = 8  # pictures
NOTHING = "no cell supports it, so its map is zero"  # the end of a note


@dataclass(frozen=True)
class Explained(Result[list[GradCam]]):
    """The maps of one picture, or its error.

    Attributes:
        maps: one per target; empty if there is an error.
        picture, error, notes: as in `Result`; a note names each map that is zero everywhere.
    """

    @property
    def maps(self) -> list[GradCam]:
        """The `value`; empty if there is an error."""
        return self.value or []


@shows(ReadingKeywords, Reading)
def gradcam_targets(
    network: Network,
    image: Picture,
    targets: Targets | None,
    *,
    against: str | int | None = None,
    layer: LayerLike | None = None,
    method: Method = "gradcam",
    **reading: Unpack[ReadingKeywords],
) -> list[GradCam]:
    """Explain several targets of one picture; the network runs once.

    Args:
        network, image, against, layer, method, reading: as in `gradcam`.
        targets: one or more, each as in `gradcam`; None for the most probable class alone.

    Returns:
        One map per target, in order.

    Raises:
        OSError, ValueError: as `gradcam`; or the list is empty.

    Warns:
        CamWarning: a map is zero everywhere.

    >>> from convnets_torch import load
    >>> [found.layer for found in gradcam_targets(load("alexnet.safetensors"), "street.jpg", ["car", "dog"])]
    ['features.relu_5', 'features.relu_5']
    """
    [entry] = gradcam_each(network, [image], targets, against=against, layer=layer, method=method, **reading)
    if entry.error is not None:
        raise entry.error
    zero = [note for note in entry.notes if note.endswith(NOTHING)]
    warn(tuple(note for note in entry.notes if note not in zero))
    for note in zero:
        warnings.warn(note, CamWarning, stacklevel=2)
    return entry.maps


class CamKeywords(ReadingKeywords, total=False):
    """Keywords of `gradcam` and `gradcam_targets`."""

    against: str | int | None
    layer: LayerLike | None
    method: Method


@shows(CamKeywords, gradcam_targets)
def gradcam(
    network: Network, image: Picture, target: str | int | None = None, **options: Unpack[CamKeywords]
) -> GradCam:
    """Show which parts of a picture raise the score of a target, by gradient-weighted activations of a layer.

    The picture is resized and cropped as for classification, so the map explains that prediction and covers only the
    part that the network saw. `heatmap` answers a different question: where in an uncropped picture a target is.

    Args:
        network: in eval mode and with a card, as `load` returns it.
        image: anything `read_picture` takes; for several pictures see `gradcam_each`.
        target: a class id, a wnid, a WordNet name, a word, or an expression with signs, as for `heatmap`. A synset is
            explained as one class, by the log-sum-exp of its classes' logits. None for the most probable class. For the
            maps of several targets see `gradcam_targets`.
        against: a second target whose score is subtracted, to explain for instance "husky rather than wolf".
        layer: name, Keras name or pattern of one layer; defaults to the last convolution.
        method: "gradcam", "gradcam++", "hirescam" or "layercam", as in `cams`.
        reading: as in `read_picture`.

    Returns:
        The map, divided by its maximum.

    Raises:
        OSError: the picture is missing or broken.
        ValueError: a target or the layer is unknown, the layer has no cells, both targets are the same classes, or
            the network has no card, no head, or is in training mode.

    Warns:
        CamWarning: a map is zero everywhere.

    Sources: as in `cams`.

    >>> from convnets_torch import load
    >>> car = gradcam(load("alexnet.safetensors"), "street.jpg", "car", method="layercam")
    >>> car.values.shape, car.layer, car.cells.apart
    ((13, 13), 'features.relu_5', (16.0, 16.0))
    >>> car.save("car.png")
    """
    if isinstance(target, list | tuple):
        words = "gradcam of a list of targets is now gradcam_targets; lists go with the next release"
        warnings.warn(words, DeprecationWarning, stacklevel=2)
        return gradcam_targets(network, image, target, **options)
    return gradcam_targets(network, image, None if target is None else [target], **options)[0]


@shows(ReadingKeywords, Reading)
def gradcam_each(
    network: Network,
    images: Picture | Iterable[Picture],
    target: str | int | Targets | None = None,
    *,
    against: str | int | None = None,
    layer: LayerLike | None = None,
    method: Method = "gradcam",
    batch: int | Literal["auto"] = "auto",
    workers: int | None = None,
    **reading: Unpack[ReadingKeywords],
) -> Generator[Explained, None, None]:
    """Yield the `gradcam` maps of any number of pictures; an unusable picture does not stop the others.

    Worker threads decode pictures ahead. The batch is halved if memory runs out.

    Args:
        network, target, against, layer, method, reading: as in `gradcam`; a target of None is the most probable class
            of each picture.
        images: one picture or several, each anything `read_picture` takes.
        batch: batch size; "auto" is 8.
        workers: decoding threads; defaults to one per core, at most 16.

    Returns:
        A generator of one `Explained` per picture, in order; `close()` stops it early.

    Raises:
        ValueError: immediately, for invalid arguments or an unsuitable network, as in `gradcam`.

    >>> from convnets_torch import load
    >>> for entry in gradcam_each(load("alexnet.safetensors"), ["street.jpg", "none.jpg"], ["car", "dog"]):
    ...     print(entry.picture, len(entry.maps), entry.error)
    street.jpg 2 None
    none.jpg 0 none.jpg does not exist; name a file
    """
    how = Reading(True, **checked(reading, ReadingKeywords))
    network = as_network(network)
    card = card_of(network)
    probabilities(torch.zeros(1, card.classes), card)  # raises if the outputs are not probabilities
    targets = None if target is None else checked_targets(card, target)
    opposed = None if against is None else checked_target(card, against)
    if opposed is not None and targets is None:
        raise ValueError(f"against is {opposed.label}, but there is no target; name one")
    for each in targets or []:
        if opposed is not None and each.class_ids == opposed.class_ids:
            raise ValueError(f"{each.label} and {opposed.label} are the same classes; give two different targets")
    check_choice(method, METHODS, "method")
    name = checked_layer(network, layer)
    device, dtype = place_of(network)
    inputs = Inputs(card.preprocessing, device, how, exact=True, on_decode=pixels_of)
    against_ids = () if opposed is None else opposed.class_ids
    scores = None if targets is None else [Score(each.class_ids, against_ids) for each in targets]

    def maps_of(pixels: Pixels, raw: Tensor, chances: Tensor) -> Iterator[GradCam]:
        """Yield one `GradCam` per target from a picture's raw maps (targets, h, w)."""
        found = targets or [find_target(card, int(chances.argmax()))]
        cells = cam_cells(network, name, (raw.shape[1], raw.shape[2]), card, (pixels.shape[0], pixels.shape[1]))
        for each, values in zip(found, raw.float().cpu().numpy(), strict=True):
            highest = float(values.max())
            yield GradCam(
                values=values / np.float32(highest or 1),
                raw_maximum=highest,
                target=each,
                against=opposed,
                layer=name,
                method=method,
                probability=min(1.0, float(chances[list(each.class_ids)].sum())),
                picture=pixels,
                grid=cells,
            )

    def run(items: list[Input]) -> list[list[GradCam]]:
        maps, logits = cams_and_logits(network, inputs.images(items, dtype), scores, layer=name, method=method)
        chances = probabilities(logits, card).cpu()
        return [list(maps_of(each.extra, maps[:, place], chances[place])) for place, each in enumerate(items)]

    def explained(row: Result[list[GradCam]]) -> Explained:
        zero = [each.label for each in row.value or [] if each.raw_maximum == 0]
        notes = [f"{picture_name(row.picture)}: {label}: {NOTHING}" for label in zero]
        return Explained(row.picture, row.value, row.error, (*row.notes, *notes))

    size = BATCH_SIZE if batch == "auto" else batch
    rows = run_pictures(
        each_of(images), inputs.decode, run, batch=size, threads=workers or THREADS, size=expected_pixels
    )
    return each_row(rows, explained)
