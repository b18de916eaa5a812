"""Grad-CAM: which parts of a picture raise the score of a class.

Sources: Grad-CAM, arXiv:1610.02391; Grad-CAM++, arXiv:1710.11063; HiResCAM, arXiv:2011.08891; LayerCAM, IEEE
Transactions on Image Processing 30, 2021, pages 5875 to 5888.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import index
from typing import Literal, SupportsIndex, TypeAlias, overload

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
    """A map that says nothing: no cell of the layer speaks for the target."""


@dataclass(frozen=True)
class Score:
    """What a map explains, as a number that can be differentiated.

    Attributes:
        class_ids: the score is the log-sum-exp of their logits, the logit of what the softmax gives them together;
            of a single class it is its logit.
        against: classes whose log-sum-exp is subtracted; none by default.
    """

    class_ids: tuple[int, ...]
    against: tuple[int, ...] = ()

    def of(self, logits: Tensor) -> Tensor:
        """Logits (N, classes) -> scores (N).

        Raises:
            ValueError: no class, or one that the logits do not have.

        >>> Score((0, 1), against=(2,)).of(torch.tensor([[1.0, 1.0, 0.0]]))
        tensor([1.6931])
        """
        if not self.class_ids:
            raise ValueError("a target has no class; name one or more")
        for class_id in (*self.class_ids, *self.against):
            if not 0 <= class_id < logits.shape[1]:
                raise ValueError(
                    f"class {class_id} is none of the {logits.shape[1]} classes; give 0 to {logits.shape[1] - 1}"
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
    """Maps of what in a layer speaks for each of several targets, from one pass.

    The network runs as far as the layer without gradients; only what comes after is differentiated, once for each
    target. Nothing stays on the module, also after an error: no hooks, no `.grad`.

    Args:
        module: any module in eval mode from images to logits (N, classes).
        images: (N, 3, H, W), as the module takes them.
        targets: class ids, groups of class ids, or `Score`s, which also weigh two groups against each other; None for
            the class with the highest logit of each image.
        layer: whose output (N, C, h, w) is looked at, as `find_layer` takes it; of one that is called several times
            the last call. By default the last convolution, which only networks of this library say.
        method: "gradcam": the activations of each channel, weighted with the channel's mean gradient (equations 1 and
            2). "gradcam++": weighted with a mean of its positive gradients in which each cell has a weight of its own
            (equation 19, which takes the exponential of the score and so needs no further derivatives). "hirescam":
            every cell weighted with its own gradient. "layercam": with its own positive gradient.

    Returns:
        (targets, N, h, w), zero or more: raw, so comparable between targets and images. float64 for such modules,
        float32 otherwise, on the images' device. What speaks against the target is cut off, also by "hirescam", whose
        paper keeps it. A map that would be negative everywhere is zero.

    Raises:
        ValueError: the module is in training mode or has no head, the layer is not known or has no cells, a target is
            none of the classes, nothing after the layer can be differentiated, or the maps are not finite.

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
            f"{empty} of {count} maps {'is' if empty == 1 else 'are'} zero everywhere: no cell speaks for the target",
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
    """`cams` without its warning, and the logits (N, classes) of the same pass.

    Raises:
        ValueError: as `cams`.
    """
    module = unwrapped(module)
    name = checked_layer(module, layer)
    check_choice(method, METHODS, "method")
    with torch.inference_mode(False), torch.no_grad():
        images = images.clone() if images.is_inference() else images
        if isinstance(module, Network):  # faster; other modules may view what must be contiguous
            images = images.contiguous(memory_format=torch.channels_last)
        leaf, logits = _run(module, images, name)
        with torch.enable_grad():
            scores = _scores(logits, targets)
        if not scores[0].requires_grad:
            raise ValueError(f"nothing after {name} leads to the outputs by operations that can be differentiated")
        cells = _wide(leaf.detach())
        maps = []
        for number, score in enumerate(scores, start=1):  # one by one: vmap over them would not know all operations
            (gradients,) = torch.autograd.grad(score.sum(), leaf, retain_graph=number < len(scores), allow_unused=True)
            if gradients is None:
                raise ValueError(f"the outputs do not depend on {name}; name another layer")
            maps.append(METHODS[method](cells, _wide(gradients)).relu_())
        found = torch.stack(maps)
    if not found.isfinite().all():
        raise ValueError("the maps are NaN or infinite: the weights are broken, or too large for their precision")
    return found, logits.detach()


def _grad_cam(cells: Tensor, gradients: Tensor) -> Tensor:
    """Equations 1 and 2 of arXiv:1610.02391."""
    return torch.einsum("nchw,nc->nhw", cells, gradients.mean(dim=(2, 3)))


def _grad_cam_plus_plus(cells: Tensor, gradients: Tensor) -> Tensor:
    """Equation 19 of arXiv:1710.11063, in the weights that sum its alphas times the positive gradients.

    Equation 19 is g^2 / (2 g^2 + g^3 sum(A)), which is 1 / (2 + g sum(A)): so written it divides by 2 or more wherever
    the gradient counts, as long as activations are not negative, and takes no small number against division by zero.
    """
    denominator = 2 + gradients * cells.sum(dim=(2, 3), keepdim=True)
    weights = (gradients.relu() / denominator).where(denominator != 0, 0).sum(dim=(2, 3))
    return torch.einsum("nchw,nc->nhw", cells, weights)


def _hires_cam(cells: Tensor, gradients: Tensor) -> Tensor:
    """Activations times gradients, summed over channels: the definition in arXiv:2011.08891."""
    return (cells * gradients).sum(dim=1)


def _layer_cam(cells: Tensor, gradients: Tensor) -> Tensor:
    """The same with positive gradients only: the definition in the LayerCAM paper."""
    return (cells * gradients.relu()).sum(dim=1)


# Activations (N, C, h, w) and gradients of the score there -> maps (N, h, w), before what is negative is cut off.
METHODS: dict[Method, Callable[[Tensor, Tensor], Tensor]] = {
    "gradcam": _grad_cam,
    "gradcam++": _grad_cam_plus_plus,
    "hirescam": _hires_cam,
    "layercam": _layer_cam,
}


def checked_layer(module: nn.Module, layer: LayerLike | None) -> str:
    """The name of the module whose output is to be looked at.

    Raises:
        ValueError: the module cannot be explained at all, or the layer is not known.
    """
    check_eval_mode(module)
    if isinstance(module, Network) and module.head is None:
        raise ValueError(NO_HEAD)
    return last_convolution(module) if layer is None else find_layer(module, layer)


def _run(module: nn.Module, images: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """The layer's output, which takes gradients, and the logits that come of it; entered with gradients off.

    Modules whose parameters were made in inference mode cannot be differentiated; they run with copies.
    """
    leaves: list[Tensor] = []

    def cut(_: str, output: Tensor) -> Tensor:
        if output.ndim != 4 or output.shape[2] * output.shape[3] < 2:
            raise ValueError(
                f"{name} gives {tuple(output.shape[1:])}, which has no cells (channels, height, width); name a layer"
                " before it"
            )
        leaf = output.detach().clone() if output.is_inference() else output.detach()
        leaves[:] = [leaf.requires_grad_()]
        torch.set_grad_enabled(True)  # until the block of the caller ends
        return leaf.clone()  # the next layer may overwrite its input

    logits = _usable(observed(module, [name], cut))(images)
    if not leaves:
        raise ValueError(f"{name} is not run by {type(module).__name__}; name another layer")
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{type(module).__name__} gives {given}, but one tensor of logits (N, classes) is wanted")
    if not logits.isfinite().all():
        raise ValueError("the network's outputs are NaN or infinite: its weights are broken, or too large for float16")
    return leaves[0], logits


def _usable(module: nn.Module) -> nn.Module:
    """The module, with copies of those tensors that may take no part in what is differentiated."""
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
    """Of each target, (N)."""
    if targets is None:
        return [logits.max(dim=1).values]
    if not targets:
        raise ValueError("the list of targets is empty; name what to look for")
    return [_score_of(target).of(logits) for target in targets]


def _score_of(target: SupportsIndex | Sequence[int] | Score) -> Score:
    if isinstance(target, Score):
        return target
    return Score((index(target),) if isinstance(target, SupportsIndex) else tuple(target))


def _wide(values: Tensor) -> Tensor:
    """In float32 at least: means over cells lose too much in half precision."""
    return values if values.dtype == torch.float64 else values.float()


BATCH = 8  # pictures that go through the network together
NOTHING = "no cell speaks for it, and its map is zero"  # how a remark ends


@dataclass(frozen=True)
class Explained(Result[list[GradCam]]):
    """What became of one picture.

    Attributes:
        maps: one for each target; empty where there is an error.
        picture, error, remarks: as in `Result`; a map that is zero everywhere is remarked on.
    """

    @property
    def maps(self) -> list[GradCam]:
        """The `value`; empty where there is an error."""
        return self.value or []


@overload
def gradcam(
    network: Network,
    image: Picture,
    target: str | int | None = None,
    *,
    against: str | int | None = None,
    layer: LayerLike | None = None,
    method: Method = "gradcam",
    **reading: Unpack[ReadingKeywords],
) -> GradCam: ...


@overload
def gradcam(
    network: Network,
    image: Picture,
    target: Targets,
    *,
    against: str | int | None = None,
    layer: LayerLike | None = None,
    method: Method = "gradcam",
    **reading: Unpack[ReadingKeywords],
) -> list[GradCam]: ...


@shows(ReadingKeywords, Reading)
def gradcam(
    network: Network,
    image: Picture,
    target: str | int | Targets | None = None,
    *,
    against: str | int | None = None,
    layer: LayerLike | None = None,
    method: Method = "gradcam",
    **reading: Unpack[ReadingKeywords],
) -> GradCam | list[GradCam]:
    """What in a picture speaks for a target: cells of a layer, weighted with gradients.

    The picture is resized and cropped as for classifying, so that the map explains that answer; where it saw nothing,
    the map says nothing. `heatmap` asks another question: where in an uncropped picture a target is.

    Args:
        network: in eval mode, with its card, as `load` gives it.
        image: whatever `read_picture` takes. `gradcam_each` takes several.
        target: a class id, a wnid, a WordNet name, a word, or several with signs, as for `heatmap`: a synset is
            explained as one class, by the log-sum-exp of its classes' logits. None for the most probable class. A list
            of targets gives a list of maps; the network still runs once.
        against: what counts against the target, "husky rather than wolf": the difference of the two scores is
            explained.
        layer: name, Keras's name or pattern of one layer; the last convolution by default.
        method: "gradcam", "gradcam++", "hirescam" or "layercam", as in `cams`.
        reading: as in `read_picture`.

    Returns:
        Its map; for a list, a map for each target.

    Raises:
        OSError: the picture is missing or broken.
        ValueError: a target or the layer is not known, the layer has no cells, both targets are the same classes, or
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
    how = Reading(True, **checked(reading, ReadingKeywords))
    [entry] = _explain(network, [image], target, against, layer, method, how)
    if entry.error is not None:
        raise entry.error
    zero = [remark for remark in entry.remarks if remark.endswith(NOTHING)]
    warn(tuple(remark for remark in entry.remarks if remark not in zero))
    for remark in zero:
        warnings.warn(remark, CamWarning, stacklevel=2)
    return entry.maps if isinstance(target, list | tuple) else entry.maps[0]


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
    """`gradcam` of any number of pictures; one that cannot be used does not stop the others.

    Pictures are decoded ahead in threads and go through the network 8 at a time, or fewer where memory does not
    suffice.

    Args:
        network, target, against, layer, method, reading: as in `gradcam`; None as the target is the most probable
            class of each picture.
        images: whatever `read_picture` takes, one or several.
        batch: how many go through the network together; "auto" is 8.
        workers: threads that decode; by default one for each core, at most 16.

    Returns:
        A generator of one `Explained` per picture, in the order given; `close()` stops it early.

    Raises:
        ValueError: at once, for what concerns all pictures, as in `gradcam`.

    >>> from convnets_torch import load
    >>> for entry in gradcam_each(load("alexnet.safetensors"), ["street.jpg", "none.jpg"], ["car", "dog"]):
    ...     print(entry.picture, len(entry.maps), entry.error)
    street.jpg 2 None
    none.jpg 0 none.jpg does not exist; name a file
    """
    how = Reading(True, **checked(reading, ReadingKeywords))
    return _explain(network, each_of(images), target, against, layer, method, how, batch, workers)


def _explain(
    network: Network,
    pictures: Iterable[Picture],
    target: str | int | Targets | None,
    against: str | int | None,
    layer: LayerLike | None,
    method: Method,
    reading: Reading,
    batch: int | Literal["auto"] = "auto",
    workers: int | None = None,
) -> Generator[Explained, None, None]:
    network = as_network(network)
    card = card_of(network)
    probabilities(torch.zeros(1, card.classes), card)  # refuses a network whose outputs are none
    targets = None if target is None else checked_targets(card, target)
    opposed = None if against is None else checked_target(card, against)
    if opposed is not None and targets is None:
        raise ValueError(f"{opposed.label} is to count against a target; name that target")
    for each in targets or []:
        if opposed is not None and each.class_ids == opposed.class_ids:
            raise ValueError(f"{each.label} and {opposed.label} are the same classes; weigh two targets")
    check_choice(method, METHODS, "method")
    name = checked_layer(network, layer)
    device, dtype = place_of(network)
    inputs = Inputs(card.preprocessing, device, reading, exact=True, look=pixels_of)
    against_ids = () if opposed is None else opposed.class_ids
    scores = None if targets is None else [Score(each.class_ids, against_ids) for each in targets]

    def maps_of(pixels: Pixels, raw: Tensor, chances: Tensor) -> Iterator[GradCam]:
        """The maps of one picture, (targets, h, w), with their places and words."""
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
        return [list(maps_of(each.seen, maps[:, place], chances[place])) for place, each in enumerate(items)]

    def explained(row: Result[list[GradCam]]) -> Explained:
        zero = [each.label for each in row.value or [] if each.raw_maximum == 0]
        remarks = [f"{picture_name(row.picture)}: {label}: {NOTHING}" for label in zero]
        return Explained(row.picture, row.value, row.error, (*row.remarks, *remarks))

    size = BATCH if batch == "auto" else batch
    rows = run_pictures(pictures, inputs.prepared, run, batch=size, threads=workers or THREADS, size=expected_pixels)
    return each_row(rows, explained)
