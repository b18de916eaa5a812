"""Measure how faithful a map is to the network: deletion, insertion and masking of pixels.

Sources: deletion and insertion, RISE, arXiv:1806.07421; average drop and increase in confidence, Grad-CAM++,
arXiv:1710.11063.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from convnets_torch.explain.gradcam_maps import GradCam
from convnets_torch.inference.batching import batches_with_retry
from convnets_torch.inference.classification import card_of, probabilities, square_input, to_parameters
from convnets_torch.networks import Network

Probability = Callable[[Tensor], Tensor]  # images (N, 3, H, W) -> the target's probability (N), 0 to 1

STEPS = 50  # points of a curve after its first
BATCH_SIZE = 16  # images
BLUR = (11, 5.0)  # width in pixels and standard deviation of RISE's blur, on images of 224 pixels


def deletion(
    probability: Probability, image: Tensor, importance: Tensor, *, baseline: Tensor | float = 0.0, steps: int = STEPS
) -> Tensor:
    """Return the target's probability as the most important pixels are removed; with a good map it falls early.

    Args:
        probability: maps images to the target's probability; called with batches of up to 16 images, without gradients.
        image: (3, H, W), preprocessed for the network.
        importance: (H, W); ties are resolved in row-major order.
        baseline: replaces removed pixels, a number or a tensor broadcastable to (3, H, W). The default of 0 is the mean
            colour of the training pictures if the preprocessing subtracts it.
        steps: number of equal shares in which pixels are removed; RISE uses H.

    Returns:
        (steps + 1) probabilities, from the whole image to the baseline alone. See `area`; lower is better.

    Raises:
        ValueError: `importance` and `image` differ in size, or `steps` is less than 1.

    >>> image, importance = torch.ones(3, 2, 2), torch.tensor([[4.0, 1.0], [2.0, 3.0]])
    >>> deletion(lambda images: images[:, 0, 0, 0], image, importance, steps=4)  # the network sees one pixel
    tensor([1., 0., 0., 0., 0.])
    """
    return _curve(probability, image, torch.zeros_like(image) + baseline, importance, steps)


def insertion(
    probability: Probability, image: Tensor, importance: Tensor, *, blurred: Tensor | None = None, steps: int = STEPS
) -> Tensor:
    """Return the target's probability as the most important pixels are restored; with a good map it rises early.

    Args:
        probability, image, importance, steps: as for `deletion`.
        blurred: (3, H, W), the initial image; defaults to `blur(image)`, as in RISE.

    Returns:
        (steps + 1) probabilities, from the blurred to the whole image. See `area`; higher is better.

    Raises:
        ValueError: as for `deletion`.
    """
    return _curve(probability, blur(image) if blurred is None else blurred, image, importance, steps)


def area(curve: Tensor) -> Tensor:
    """Return the area under curves (..., steps + 1) of width 1 by the trapezoidal rule; 0 to 1 for probabilities.

    >>> area(torch.tensor([1.0, 0.5, 0.0]))
    tensor(0.5000)
    """
    return torch.trapezoid(curve, dx=1 / (curve.shape[-1] - 1), dim=-1)


def masked(image: Tensor, importance: Tensor) -> Tensor:
    """Multiply an image (3, H, W) by a map (H, W), 0 to 1, for average drop and increase."""
    _check(image, importance)
    return image * importance.to(image)


def average_drop(whole: Tensor, left: Tensor) -> float:
    """Return the mean relative loss of probability after masking; lower is better.

    Args:
        whole: (N), probabilities of the targets in whole images.
        left: (N), in `masked` images. A gain counts as no loss.

    Returns:
        0 to 1; the paper gives per cent. An image with probability 0 counts as no loss.

    >>> average_drop(torch.tensor([0.8, 0.5]), torch.tensor([0.4, 0.9]))
    0.25
    """
    lost = (whole.double() - left.double()).clamp(min=0)
    return float((lost / whole.double().where(whole > 0, 1)).mean())


def average_increase(whole: Tensor, left: Tensor) -> float:
    """Return the share of images whose probability rises after masking, as for `average_drop`; higher is better.

    >>> average_increase(torch.tensor([0.8, 0.5]), torch.tensor([0.4, 0.9]))
    0.5
    """
    return float((left > whole).double().mean())


def blur(image: Tensor) -> Tensor:
    """Blur an image (3, H, W) with RISE's Gaussian: 11 pixels, standard deviation 5; edge pixels are repeated."""
    width, deviation = BLUR
    places = torch.arange(width, dtype=image.dtype, device=image.device) - width // 2
    kernel = torch.exp(-(places**2) / (2 * deviation**2))
    kernel = (kernel / kernel.sum()).view(1, 1, width)
    half = width // 2
    padded = F.pad(image[None], (half, half, half, half), mode="replicate")[0]
    across = F.conv2d(padded[:, None], kernel[:, :, None, :])
    return F.conv2d(across, kernel[:, :, :, None])[:, 0]


@dataclass(frozen=True, eq=False)
class Faithfulness:
    """Faithfulness measures of one map.

    Attributes:
        probability: the target's probability in the image that the network saw.
        masked_probability: the same for that image times the map.
        deletion, insertion: (steps + 1), as the functions return them.
    """

    probability: float
    masked_probability: float
    deletion: Tensor
    insertion: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Return the curves, their areas, and this map's drop and increase, ready for JSON."""
        found = summary([self])
        return {
            "probability": round(self.probability, 6),
            "masked_probability": round(self.masked_probability, 6),
            "drop": found["average_drop"],
            "increase": self.masked_probability > self.probability,
            "deletion_area": found["deletion_area"],
            "insertion_area": found["insertion_area"],
            "deletion": [round(value, 6) for value in self.deletion.tolist()],
            "insertion": [round(value, 6) for value in self.insertion.tolist()],
        }


def measure_faithfulness(network: Network, found: GradCam, *, steps: int = STEPS) -> Faithfulness:
    """Measure a map by deletion, insertion and masking of the image that the network saw.

    The probability is that of the map's target, even if the map has an `against`. Deleted pixels become 0 in the
    network's input, which is the mean colour if the preprocessing subtracts one.

    Args:
        network: the network that gave the map.
        found: as `gradcam` returns it.
        steps: as in `deletion`; the network sees 2 * steps + 4 images.

    Raises:
        ValueError: `steps` is less than 1; or as for `classify`.

    >>> from convnets_torch import gradcam, load
    >>> network = load("alexnet.safetensors")
    >>> found = measure_faithfulness(network, gradcam(network, "street.jpg", "car"), steps=4)
    >>> found.deletion.shape, bool((found.deletion[0] - found.insertion[-1]).abs() < 1e-5)
    (torch.Size([5]), True)
    """
    card = card_of(network)
    ids = list(found.target.class_ids)

    def probability(images: Tensor) -> Tensor:
        return probabilities(network(images), card)[:, ids].sum(dim=1).clamp(max=1)

    image = to_parameters(square_input(found.picture, card), network)
    importance = torch.from_numpy(found.grid.resample_seen(found.values)).to(image.device)
    kept = torch.stack([image, masked(image, importance)])
    with torch.inference_mode():
        whole, left = probability(kept).tolist()
    curves = (measure(probability, image, importance, steps=steps).cpu() for measure in (deletion, insertion))
    return Faithfulness(whole, left, *curves)


def summary(results: Sequence[Faithfulness]) -> dict[str, Any]:
    """Return average drop, average increase and mean areas of several maps, ready for JSON."""
    whole = torch.tensor([each.probability for each in results])
    left = torch.tensor([each.masked_probability for each in results])
    return {
        "maps": len(results),
        "average_drop": round(average_drop(whole, left), 6),
        "average_increase": round(average_increase(whole, left), 6),
        "deletion_area": round(float(area(torch.stack([each.deletion for each in results])).mean()), 6),
        "insertion_area": round(float(area(torch.stack([each.insertion for each in results])).mean()), 6),
    }


def _curve(probability: Probability, begin: Tensor, end: Tensor, importance: Tensor, steps: int) -> Tensor:
    """Probabilities as the pixels of `begin` are replaced by those of `end`, most important first."""
    _check(begin, importance)
    if steps < 1:
        raise ValueError(f"steps is {steps}; give 1 or more")
    pixels = importance.numel()
    order = importance.flatten().argsort(descending=True, stable=True)
    rank = torch.empty_like(order)  # of each pixel; 0 for the most important
    rank[order] = torch.arange(pixels, device=order.device)
    rank = rank.view(importance.shape).to(begin.device)

    def run(numbers: range) -> Tensor:
        gone = [round(pixels * number / steps) for number in numbers]
        images = torch.stack([torch.where(rank < count, end, begin) for count in gone])
        return probability(images).float()

    with torch.inference_mode():
        curve = torch.cat(list(batches_with_retry(run, steps + 1, BATCH_SIZE)))
    return curve.clone()


def _check(image: Tensor, importance: Tensor) -> None:
    if image.ndim != 3 or image.shape[1:] != importance.shape:
        raise ValueError(
            f"the image is {tuple(image.shape)}, the map {tuple(importance.shape)}; give (3, H, W) and (H, W)"
        )
