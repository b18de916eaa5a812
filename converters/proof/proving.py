"""Prove a conversion in a process of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from converters.plan import KerasStep, Plan
from converters.proof.forwarding import IMAGE, NAMES, OUTPUTS
from converters.proof.proof import ProofRow, check, compare
from converters.readers.keras_file import KerasFile
from converters.readers.keras_graph import label
from converters.readers.process import Call
from convnets_torch.card import Card
from convnets_torch.images.preprocessing import normalize
from convnets_torch.networks import Network
from convnets_torch.weights import build


def prove(
    source: Path,
    described: dict[str, Any],
    plan: Plan,
    card: Card,
    arrays: Mapping[str, NDArray[Any]],
    call: Call,
) -> tuple[ProofRow, ...]:
    """Hold each layer of the converted network against what the file means, for one picture.

    Args:
        source: the file.
        described: what it says of itself.
        plan: that was carried out.
        card: of the network.
        arrays: parameter -> its converted values.
        call: gives orders to the process that reads the file.

    Returns:
        The largest error of each layer, in the order of the network, and of the logits.

    Raises:
        ValueError: a layer is further off than float32 explains.
    """
    network = build(plan.network, plan.arguments)
    network.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()}, assign=True)
    network.double().eval()  # a copy, in the precision of the proof: what is left is no rounding
    rule = card.preprocessing
    picture = probe_picture(network.size)
    image = normalize(picture, rule)
    # A model that rescales pictures itself takes the picture as it is.
    theirs_image = picture.astype(np.float64) if plan.rescales else image.transpose(1, 2, 0).astype(np.float64)
    file = KerasFile.from_dict(described)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / IMAGE, theirs_image)
        call("forward", path=str(source), described=described, folder=folder, assumptions=_assumptions(file, plan))
        names = (Path(folder) / NAMES).read_text(encoding="utf-8").split("\n")
        with np.load(Path(folder) / OUTPUTS) as stored:
            theirs = {name: stored[f"arr_{number}"] for number, name in enumerate(names)}
    for name, (channels, height, width) in _flattened(file, plan).items():  # ours have flattened a map of another order
        theirs[name] = theirs[name].reshape(height, width, channels).transpose(2, 0, 1).ravel()
    for name in _of_map(network, file, plan):  # averaged after it is normalised, which is the same as before
        theirs[name] = theirs[name].mean((1, 2)) if theirs[name].ndim == 3 else theirs[name]
    rows = compare(record_outputs(network, image), theirs, _table(file, plan) | {names[-1]: (names[-1],)})
    check(rows)
    return tuple(rows)


def _table(file: KerasFile, plan: Plan) -> dict[str, tuple[str, ...]]:
    """Our module -> labels of their layers."""
    by_place = {array.place: label(layer, file) for layer in file.weighted for array in layer.arrays.values()}
    table: dict[str, tuple[str, ...]] = {}
    for step in plan.steps:
        if isinstance(step, KerasStep) and step.arrays:
            module = step.row.parameter.rpartition(".")[0]
            table[module] = tuple(by_place[array.place] for array in step.arrays)
    return table


def _flattened(file: KerasFile, plan: Plan) -> dict[str, tuple[int, int, int]]:
    """Their normalisations of a map that was flattened in the order h, w, channels, with (channels, h, w) of it."""
    table = _table(file, plan)
    return {
        table[step.row.parameter.rpartition(".")[0]][0]: step.layout.window
        for step in plan.steps
        if isinstance(step, KerasStep) and step.arrays and step.layout.window is not None and len(step.row.shape) == 1
    }


def _of_map(network: Network, file: KerasFile, plan: Plan) -> list[str]:
    """Their normalisations that ours has behind an average."""
    averaged = plan.arguments.get("head", ((),))[0] == ("average",)
    table = _table(file, plan)
    return [table[name][0] for name in table if averaged and isinstance(network.get_submodule(name), nn.BatchNorm1d)]


def _assumptions(file: KerasFile, plan: Plan) -> dict[str, Any]:
    """What the proof is told beside the file: the same that the user or the plan's rules said."""
    steps: Sequence[Sequence[Any]] | None = plan.arguments.get("head")
    return {
        "backend": plan.backend or "tensorflow",
        "data_format": plan.data_format,
        "network": plan.network,
        "lineage": plan.lineage,
        "pool1_padding": plan.arguments.get("pool_padding"),
        "epsilon": plan.arguments.get("epsilon"),
        "head": steps,
        "hidden": plan.hidden,
    }


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
