"""The graphs of convnets-keras: AlexNet, VGG16 and VGG19 as its code builds them, for `build_graphs.py`.

Source: `convnetskeras/convnets.py` of convnets-keras, whose Lambda layers are `SplitTensor` (half of the channels) and
`CrossChannelNormalization` here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

DEPTHS = {"VGG16": (2, 2, 3, 3, 3), "VGG19": (2, 2, 4, 4, 4)}


class _Graph:
    """The layers of a model, under Keras 1's names."""

    def __init__(self, size: int) -> None:
        self.nodes: list[tuple[str, str, list[str]]] = []  # name, layer as JSON, names of its inputs
        self.weighted: list[str] = []
        self.counts: dict[str, int] = {}
        self.x = self.add("InputLayer", [], batch_shape=[None, size, size, 3])

    def add(self, kind: str, sources: Sequence[str] | None = None, name: str = "", **settings: Any) -> str:
        """Append a layer that reads `sources`, by default the last one, and return its name."""
        word = {"InputLayer": "input", "SplitTensor": "lambda", "CrossChannelNormalization": "lambda"}.get(
            kind, kind.lower()
        )
        if not name:
            self.counts[word] = self.counts.get(word, 0) + 1
            name = f"{word}_{self.counts[word]}"
        sources = [self.x] if sources is None else [*sources]
        tensors: list[Any] = [None] * len(sources)
        layer = {"class_name": kind, "config": settings, "args": [tensors] if len(tensors) > 1 else tensors}
        self.nodes.append((name, json.dumps(layer, sort_keys=True), sources))
        self.weighted += [name] if kind in ("Conv2D", "Dense") else []
        self.x = name
        return name

    def conv(self, name: str, kernel: int, sources: Sequence[str] | None = None, strides: int = 1) -> str:
        return self.add(
            "Conv2D", sources, name, kernel_size=[kernel, kernel], strides=[strides, strides], padding="valid",
            data_format="channels_last", activation="relu", use_bias=True,
        )  # fmt: skip

    def pad(self, edge: int) -> str:
        return self.add("ZeroPadding2D", padding=[[edge, edge], [edge, edge]], data_format="channels_last")

    def pool(self, size: int, strides: int, name: str = "") -> str:
        return self.add(
            "MaxPooling2D", None, name, pool_size=[size, size], strides=[strides, strides], padding="valid",
            data_format="channels_last",
        )  # fmt: skip

    def top(self, *, fused: bool) -> tuple[str, ...]:
        """Append the dense layers, the last one with its softmax `fused`, and return their names."""
        first = len(self.nodes)
        self.add("Flatten", name="flatten")
        for number in (1, 2, 3):
            activation = "relu" if number < 3 else "softmax" if fused else "linear"
            self.add("Dense", name=f"dense_{number}", activation=activation, use_bias=True)
            if number < 3:
                self.add("Dropout", rate=0.5)
        if not fused:
            self.add("Activation", name="softmax", activation="softmax")
        return tuple(name for name, _, _ in self.nodes[first:])

    def finished(self, name: str, size: int, *, fused: bool = False) -> dict[str, Any]:
        top = list(self.top(fused=fused))
        release = "convnets-keras of Keras 0" if fused else "convnets-keras"
        return {
            "name": name, "release": release, "model": name.lower(), "size": size, "preprocessing": "original",
            "top": top, "padded": [], "nodes": self.nodes, "weighted": self.weighted,
        }  # fmt: skip


def _alexnet() -> dict[str, Any]:
    graph = _Graph(227)

    def in_halves(name: str, kernel: int) -> None:
        x = graph.x
        halves = [graph.add("SplitTensor", [x], half=half) for half in (0, 1)]
        convolutions = [graph.conv(f"{name}_{number}", kernel, [half]) for number, half in enumerate(halves, 1)]
        graph.add("Concatenate", convolutions, name, axis=-1)

    graph.conv("conv_1", 11, strides=4)
    graph.pool(3, 2)
    graph.add("CrossChannelNormalization", name="convpool_1")
    graph.pad(2)
    in_halves("conv_2", 5)
    graph.pool(3, 2)
    graph.add("CrossChannelNormalization")
    graph.pad(1)
    graph.conv("conv_3", 3)
    graph.pad(1)
    in_halves("conv_4", 3)
    graph.pad(1)
    in_halves("conv_5", 3)
    graph.pool(3, 2, "convpool_5")
    return graph.finished("AlexNet", 227)


def _vgg(name: str, *, fused: bool) -> dict[str, Any]:
    graph = _Graph(224)
    for block, depth in enumerate(DEPTHS[name], 1):
        for number in range(1, depth + 1):
            graph.pad(1)
            graph.conv(f"conv{block}_{number}", 3)
        graph.pool(2, 2)
    return graph.finished(name, 224, fused=fused)


def graphs() -> list[dict[str, Any]]:
    """Return the three networks; VGG also as the files of Keras 0 have it."""
    return [_alexnet(), *(_vgg(name, fused=fused) for fused in (False, True) for name in DEPTHS)]
