"""Verify a conversion against the file's own model, which is computed in the reading process."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from converters.plan import Plan
from converters.proof.forwarding import IMAGE, NAMES, OUTPUTS
from converters.proof.proof import OUTPUT, ProofRow, compare
from converters.readers.process import Call
from convnets_torch.card import Card
from convnets_torch.images.preprocessing import normalize
from convnets_torch.networks import Network
from convnets_torch.weights import build


def prove(
    source: Path, described: dict[str, Any], plan: Plan, card: Card, arrays: Mapping[str, NDArray[Any]], call: Call
) -> tuple[ProofRow, ...]:
    """Compare each layer of the converted network with the file's own model, on one picture.

    Args:
        source: the file.
        described: its description, `KerasFile.to_dict`.
        plan: the executed plan.
        card: the network's card.
        arrays: parameter -> converted values.
        call: runs a task in the reading process.

    Returns:
        The largest error of each layer, in network order, and last of the output; not checked yet.

    Raises:
        ValueError: the file's own model cannot be computed.
    """
    network = build(plan.network, plan.arguments)
    network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, assign=True)
    network.double().eval()  # float64 like the proof, so that any remaining difference is not rounding
    rule = card.preprocessing
    picture = probe_picture(network.size, channels=network.channels)
    image = normalize(picture, rule)
    # A model with a Rescaling layer takes raw pixels.
    theirs_image = picture.astype(np.float64) if plan.rescales else image.transpose(1, 2, 0).astype(np.float64)
    assumptions = {
        "backend": plan.backend or "tensorflow", "data_format": plan.data_format, "output": plan.output,
        "until": plan.until, "final": plan.final, "skipped": plan.skipped,
        "fused": plan.fused,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / IMAGE, theirs_image)
        call("forward", path=str(source), described=described, folder=folder, assumptions=assumptions)
        names = (Path(folder) / NAMES).read_text(encoding="utf-8").split("\n")
        with np.load(Path(folder) / OUTPUTS) as stored:
            theirs = {name: stored[f"arr_{number}"] for number, name in enumerate(names)}
    table = {**plan.table, OUTPUT: (OUTPUT,)}
    for module, (channels, height, width) in _flattened(plan).items():  # ours flattens in the order channels, h, w
        [name] = table[module]
        theirs[name] = theirs[name].reshape(height, width, channels).transpose(2, 0, 1).ravel()
    ours = record_outputs(network, image, tuple(plan.table))
    ours[OUTPUT] = ours.pop("features" if network.head is None else "logits")
    for module, layers in table.items():  # a convolution of one cell is a dense layer here
        for layer in layers if len(layers) == 1 else ():
            if theirs[layer].size == ours[module].size and 1 in theirs[layer].shape[1:]:
                theirs[layer] = theirs[layer].reshape(ours[module].shape)
    used = {name: theirs[name] for names in table.values() for name in names}
    return tuple(compare(ours, used, table))


def _flattened(plan: Plan) -> dict[str, tuple[int, int, int]]:
    """Return the batch normalisations after a flatten in the order h, w, channels, with (channels, h, w)."""
    return {
        step.row.parameter.rpartition(".")[0]: step.layout.window
        for step in plan.steps
        if step.arrays and step.layout.window is not None and len(step.row.shape) == 1
    }


COARSE = 16  # block size in pixels, about the size of a picture's larger shapes


def probe_picture(size: tuple[int, int], seed: int = 0, channels: int = 3) -> NDArray[np.uint8]:
    """Return a picture-like array (height, width, channels), 0 to 255: noisy coarse blocks without any symmetry.

    >>> probe_picture((20, 30)).shape
    (20, 30, 3)
    """
    random = np.random.default_rng(seed)
    height, width = size
    blocks = random.uniform(0, 255, (-(-height // COARSE), -(-width // COARSE), channels))
    coarse = blocks.repeat(COARSE, axis=0).repeat(COARSE, axis=1)[:height, :width]
    return np.clip(coarse + random.normal(0, 20, coarse.shape), 0, 255).astype(np.uint8)


def record_outputs(
    network: Network, image: NDArray[np.floating[Any]], names: Sequence[str]
) -> dict[str, NDArray[np.floating[Any]]]:
    """Record the outputs of modules for one image.

    Args:
        network: a network in eval mode; all hooks are removed afterwards.
        image: (channels, H, W), normalised.
        names: the modules.

    Returns:
        Module name -> (channels, h, w) or (units,); finally "logits", or "features" for a network without a head.
    """
    outputs: dict[str, NDArray[np.floating[Any]]] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            outputs.setdefault(name, output[0].numpy().copy())  # the first call of a shared layer

        return hook

    handles = [network.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        with torch.inference_mode():
            precision = next((each.dtype for each in network.parameters()), torch.float64)
            images = torch.from_numpy(np.ascontiguousarray(image)).to(precision)[None]
            if network.head is None:
                outputs["features"] = network.features(images)[0].numpy().copy()
            else:
                outputs["logits"] = network(images)[0].numpy().copy()
    finally:
        for handle in handles:
            handle.remove()
    return outputs
