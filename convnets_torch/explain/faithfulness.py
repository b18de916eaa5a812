"""Whether a map says what the network looks at: what happens to a probability when pixels are taken away, or given.

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
from convnets_torch.inference.batching import in_batches
from convnets_torch.inference.classification import card_of, probabilities, square_input, to_parameters
from convnets_torch.networks import Network

Probability = Callable[[Tensor], Tensor]  # images (N, 3, H, W) -> the target's probability (N), 0 to 1

STEPS = 50  # points of a curve after its first
BATCH = 16  # images that go through the network together
BLUR = (11, 5.0)  # width in pixels and standard deviation of RISE's blur, on images of 224 pixels


def deletion(
    probability: Probability, image: Tensor, importance: Tensor, *, baseline: Tensor | float = 0.0, steps: int = STEPS
) -> Tensor:
    """The target's probability while the most important pixels are taken away: a good map makes it fall early.

    Args:
        probability: of the target; it is called with batches of up to 16 images, without gradients.
        image: (3, H, W), as the network takes it.
        importance: (H, W); of pixels that are equally important the first in rows goes first.
        baseline: what takes their place, a number or a tensor that (3, H, W) can be made of: 0 by default, which is
            the mean colour of the training pictures for rules that subtract it.
        steps: how many equal shares of the pixels go one after another; RISE takes H of them.

    Returns:
        (steps + 1): from the whole image to the bare baseline. `area` sums it up; lower is better.

    Raises:
        ValueError: the importance has not the image's size, or there is less than one step.

    >>> image, importance = torch.ones(3, 2, 2), torch.tensor([[4.0, 1.0], [2.0, 3.0]])
    >>> deletion(lambda images: images[:, 0, 0, 0], image, importance, steps=4)  # the network sees one pixel
    tensor([1., 0., 0., 0., 0.])
    """
    canvas = torch.zeros_like(image) + baseline
    return _curve(probability, image, canvas, importance, steps)


def insertion(
    probability: Probability, image: Tensor, importance: Tensor, *, blurred: Tensor | None = None, steps: int = STEPS
) -> Tensor:
    """The target's probability while the most important pixels are put onto a blurred image: it should rise early.

    Args:
        probability, image, importance, steps: as for `deletion`.
        blurred: (3, H, W), what is there at first: by default the image through a Gaussian of 11 pixels and standard
            deviation 5, as in RISE, its border continued.

    Returns:
        (steps + 1): from the blurred image to the image. `area` sums it up; higher is better.

    Raises:
        ValueError: as `deletion`.
    """
    return _curve(probability, blur(image) if blurred is None else blurred, image, importance, steps)


def area(curve: Tensor) -> Tensor:
    """The area under curves (..., steps + 1) over a width of 1, by trapezia: 0 to 1 for probabilities.

    >>> area(torch.tensor([1.0, 0.5, 0.0]))
    tensor(0.5000)
    """
    return torch.trapezoid(curve, dx=1 / (curve.shape[-1] - 1), dim=-1)


def masked(image: Tensor, importance: Tensor) -> Tensor:
    """The image (3, H, W) times the map (H, W), 0 to 1: what is left for average drop and increase."""
    _check(image, importance)
    return image * importance.to(image)


def average_drop(whole: Tensor, left: Tensor) -> float:
    """Mean share of the probability that is lost where only what the map shows is left; lower is better.

    Args:
        whole: (N), probabilities of the targets in whole images.
        left: (N), in `masked` ones. A gain counts as no loss.

    Returns:
        0 to 1; the paper gives it in per cent. A probability of 0 has nothing to lose.

    >>> average_drop(torch.tensor([0.8, 0.5]), torch.tensor([0.4, 0.9]))
    0.25
    """
    lost = (whole.double() - left.double()).clamp(min=0)
    return float((lost / whole.double().where(whole > 0, 1)).mean())


def average_increase(whole: Tensor, left: Tensor) -> float:
    """Share of images whose probability is higher where only what the map shows is left; higher is better.

    Args:
        whole, left: as for `average_drop`.

    >>> average_increase(torch.tensor([0.8, 0.5]), torch.tensor([0.4, 0.9]))
    0.5
    """
    return float((left > whole).double().mean())


def blur(image: Tensor) -> Tensor:
    """An image (3, H, W) through RISE's Gaussian, the border going on beyond."""
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
    """What taking pixels away and giving them does to a target's probability.

    Attributes:
        probability: in the whole image that the network saw.
        masked_probability: in that image times the map.
        deletion: (steps + 1), as `deletion` gives it.
        insertion: (steps + 1), as `insertion` gives it.
    """

    probability: float
    masked_probability: float
    deletion: Tensor
    insertion: Tensor

    def to_dict(self) -> dict[str, Any]:
        """The curves and their areas, and drop and increase of this one map, as JSON can hold them."""
        return {
            "probability": round(self.probability, 6),
            "masked_probability": round(self.masked_probability, 6),
            "drop": round(average_drop(*self._both()), 6),
            "increase": self.masked_probability > self.probability,
            "deletion_area": round(float(area(self.deletion)), 6),
            "insertion_area": round(float(area(self.insertion)), 6),
            "deletion": [round(value, 6) for value in self.deletion.tolist()],
            "insertion": [round(value, 6) for value in self.insertion.tolist()],
        }

    def _both(self) -> tuple[Tensor, Tensor]:
        return torch.tensor([self.probability]), torch.tensor([self.masked_probability])


def measure_faithfulness(network: Network, found: GradCam, *, steps: int = STEPS) -> Faithfulness:
    """Deletion, insertion and masking of what the network saw of a picture, by its map.

    The probability is that of the map's target, also where the map weighs it against another. Pixels are taken away
    to 0 in the network's input, the mean colour where the card's rule subtracts one.

    Args:
        network: that gave the map.
        found: as `gradcam` gives it.
        steps: as in `deletion`; the network runs twice as often, and twice more.

    Raises:
        ValueError: less than one step; or as `classify`.

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
    return Faithfulness(
        whole,
        left,
        deletion(probability, image, importance, steps=steps).cpu(),
        insertion(probability, image, importance, steps=steps).cpu(),
    )


def summary(results: Sequence[Faithfulness]) -> dict[str, Any]:
    """Means over maps: average drop, average increase, and the areas, as JSON can hold them."""
    whole = torch.tensor([each.probability for each in results])
    left = torch.tensor([each.masked_probability for each in results])
    return {
        "maps": len(results),
        "average_drop": round(average_drop(whole, left), 6),
        "average_increase": round(average_increase(whole, left), 6),
        "deletion_area": round(float(torch.stack([area(each.deletion) for each in results]).mean()), 6),
        "insertion_area": round(float(torch.stack([area(each.insertion) for each in results]).mean()), 6),
    }


def _curve(probability: Probability, begin: Tensor, end: Tensor, importance: Tensor, steps: int) -> Tensor:
    """Probabilities while the pixels of `begin` give way to those of `end`, the most important ones first."""
    _check(begin, importance)
    if steps < 1:
        raise ValueError(f"a curve of {steps} steps is none; give 1 or more")
    pixels = importance.numel()
    order = importance.flatten().argsort(descending=True, stable=True)
    turn = torch.empty_like(order)  # of each pixel, when it is its turn
    turn[order] = torch.arange(pixels, device=order.device)
    turn = turn.view(importance.shape).to(begin.device)

    def run(numbers: range) -> Tensor:
        gone = [round(pixels * number / steps) for number in numbers]
        images = torch.stack([torch.where(turn < count, end, begin) for count in gone])
        return probability(images).float()

    with torch.inference_mode():
        curve = torch.cat(list(in_batches(run, steps + 1, BATCH)))
    return curve.clone()


def _check(image: Tensor, importance: Tensor) -> None:
    if image.ndim != 3 or image.shape[1:] != importance.shape:
        raise ValueError(
            f"the image is {tuple(image.shape)}, the map {tuple(importance.shape)}; (3, H, W) and (H, W) are wanted"
        )
