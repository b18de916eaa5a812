"""Run a converted network beside the file it came from, on one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from converters.keras_file import KerasFile
from converters.keras_layers import Read
from converters.proof import ProofRow, compare, forward
from convnets_torch.networks import Network
from convnets_torch.preprocessing import Preprocessing, normalize

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


def probe_image(size: tuple[int, int], rule: Preprocessing, seed: int = 0) -> NDArray[np.float32]:
    """`probe_picture` normalised by a card's preprocessing: (3, height, width)."""
    return normalize(probe_picture(size, seed), rule)


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


def prove(
    network: Network,
    file: KerasFile,
    read: Read,
    table: Mapping[str, Sequence[str]],
    *,
    image: NDArray[np.floating[Any]] | None = None,
    source_image: NDArray[np.floating[Any]] | None = None,
    **assumptions: Any,
) -> list[ProofRow]:
    """Hold each layer of a converted network against what the file means, for one image.

    Args:
        network: converted, in eval mode, with a card.
        file: what was converted.
        read: as in `proof.forward`.
        table: our module -> their layers, for all layers that have weights.
        image: (3, H, W), normalised by the card; None for the probe picture at the network's size.
        source_image: (H, W, 3), what the file's own model takes where it normalises by itself; None for `image`.
        assumptions: those of `proof.forward`, but `network`, which is the card's.

    Returns:
        A row for each of our modules, and one for the logits or features; `proof.check` judges them.

    Raises:
        ValueError: the file cannot be run, or its layers are not those of the table.
    """
    if network.card is None:
        raise ValueError("the network has no card, so its name and preprocessing are unknown; set `network.card`")
    if image is None:
        image = probe_image(network.size, network.card.preprocessing)
    ours = record_outputs(network, image)
    source_image = image.transpose(1, 2, 0) if source_image is None else source_image
    theirs = dict(forward(file, read, source_image, network=network.card.network, **assumptions))
    last = "logits" if "logits" in theirs else "features"
    return compare(ours, theirs, {**table, last: (last,)})
