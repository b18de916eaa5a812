"""What the proof looks at: one picture, and what each layer of a converted network makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convnets_torch.networks import Network

WEIGHTED = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.BatchNorm1d)
COARSE = 16  # pixels of a block, about what a picture's larger shapes are


def probe_picture(size: tuple[int, int], seed: int = 0) -> NDArray[np.uint8]:
    """A picture-like array (height, width, 3), 0 to 255: coarse blocks under noise, unlike itself turned any way.

    >>> probe_picture((20, 30)).shape
    (20, 30, 3)
    """
    random = np.random.default_rng(seed)
    height, width = size
    blocks = random.uniform(0, 255, (-(-height // COARSE), -(-width // COARSE), 3))
    coarse = blocks.repeat(COARSE, axis=0).repeat(COARSE, axis=1)[:height, :width]
    return np.clip(coarse + random.normal(0, 20, coarse.shape), 0, 255).astype(np.uint8)


def record_outputs(network: Network, image: NDArray[np.floating[Any]]) -> dict[str, NDArray[np.floating[Any]]]:
    """What each convolution, normalisation and dense layer of a network gives for one image.

    Args:
        network: in eval mode; no hook is left on it.
        image: (3, H, W), normalised.

    Returns:
        Name of the module -> (channels, h, w) or (units,); last "logits", or "features" of a network without a head.
    """
    outputs: dict[str, NDArray[np.floating[Any]]] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            outputs[name] = output[0].numpy().copy()

        return hook

    modules = [(name, module) for name, module in network.named_modules() if isinstance(module, WEIGHTED)]
    handles = [module.register_forward_hook(keep(name)) for name, module in modules]
    try:
        with torch.inference_mode():
            precision = next(network.parameters()).dtype
            images = torch.from_numpy(np.ascontiguousarray(image)).to(precision)[None]
            if network.head is None:
                outputs["features"] = network.features(images)[0].numpy().copy()
            else:
                outputs["logits"] = network(images)[0].numpy().copy()
    finally:
        for handle in handles:
            handle.remove()
    return outputs
