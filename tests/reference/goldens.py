"""The table of the goldens: which real framework wrote each file, of what network, and what a reader cannot know.

Plain data and NumPy: the scripts that make the files read the table, and so do the tests and the documentation.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tests.reference.pictures import picture

DATA = Path(__file__).resolve().parents[1] / "data"

VGG_WIDTHS = (4, 6, 8, 10, 12)  # channels of the five blocks
VGG_HIDDEN = (6, 10)
RESNET_WIDTHS = (5, 3, 4, 5, 6)  # of the stem and of the bottlenecks of the four stages
INCEPTION_WIDTHS = tuple(2 + 7 * i % 5 for i in range(94))  # of the convolutions, as Keras creates them
WIDTHS: dict[str, tuple[int, ...]] = {
    "alexnet": (12, 32, 48, 48, 32),
    "vgg16": VGG_WIDTHS,
    "vgg19": VGG_WIDTHS,
    "resnet50": RESNET_WIDTHS,
    "inception_v3": INCEPTION_WIDTHS,
}
SIZES = {
    "alexnet": (227, 227),
    "vgg16": (224, 224),
    "vgg19": (224, 224),
    "resnet50": (224, 224),
    "inception_v3": (299, 299),
}

Steps = tuple[tuple[Any, ...], ...]
Top = Literal[
    "standard", "none", "nested", "nested top", "flat", "batch norm", "flat batch norm", "rescaling", "augmentation"
]
DataFormat = Literal["channels_first", "channels_last"]
Form = Literal["weights", "model", ".weights.h5", ".keras"]  # the first two are legacy `.h5`

# What stands on the convolutions, as steps; a step of layers without arrays is told by the config alone.
TOPS: dict[str, Steps | None] = {
    "standard": None,  # the network's own
    "none": None,  # include_top=False
    # Sequential([network, Flatten, Dense, Dropout, Dense])
    "nested": (("flatten",), ("dense", 9), ("relu",), ("dropout", 0.5), ("dense", 5)),
    # Model(network.input, Sequential([Flatten, Dense, Dropout, Dense])(network.output))
    "nested top": (("flatten",), ("dense", 9), ("relu",), ("dropout", 0.5), ("dense", 5)),
    # Model(network.input, Dense(1)(GlobalAveragePooling2D()(network.output)))
    "flat": (("average",), ("dense", 1)),
    # Dense(9, use_bias=False), BatchNormalization, relu
    "batch norm": (("average",), ("dense", 9), ("batch_norm", 1e-3), ("relu",), ("dropout", 0.25), ("dense", 5)),
    # Model(network.input, Dense(5)(BatchNormalization()(Flatten()(network.output))))
    "flat batch norm": (("flatten",), ("batch_norm", 1e-3), ("dense", 5)),
    "rescaling": (("average",), ("dropout", 0.2), ("dense", 5)),  # Rescaling in front, then the nested network
    "augmentation": (("average",), ("dropout", 0.2), ("dense", 5)),  # RandomFlip and RandomRotation before that
}
CLASSES = {"standard": 7, "none": None, "flat": 1} | dict.fromkeys(
    ("nested", "nested top", "batch norm", "flat batch norm", "rescaling", "augmentation"), 5
)
# Of pixels 0 to 255: the mean of ImageNet subtracted from BGR, or from RGB; / 127.5 - 1; / 255; as they are.
Pixels = Literal["keras-caffe", "rgb-mean", "keras-tf", "unit", "raw"]
MEAN = (123.68, 116.779, 103.939)  # RGB


@dataclass(frozen=True)
class Golden:
    """One file that a real framework wrote, and beside it, `.npz`, what its network answers after it was read back.

    Attributes:
        file: its path under the folder of the goldens.
        network: as convnets_torch calls it; "inception_v3-keras1" is Keras 1's own, which is another network.
        lineage: "convnets-keras", "keras-applications" or "keras-applications-old" (res2a_branch2a): its names.
        version: of Keras.
        data_format: of the graph; Keras 1 calls them th and tf.
        form: what Keras saved.
        top: what stands on the convolutions, a key of `TOPS`.
        pixels: how pictures became what Keras was fed.
        size: (height, width) in pixels of the network's input.
        seeds: of the pictures.
        needs: what the file does not say and a converter must be told, as options of `convert`.
        full: whether the network is as wide as the released ones, and has 1000 classes.
        trained: whether the optimizer's slots are in the file.
        network_options: further arguments of the builder of the network.
    """

    file: str
    network: str
    lineage: str
    version: str
    data_format: DataFormat
    form: Form
    top: Top
    pixels: Pixels
    size: tuple[int, int]
    needs: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (21, 22)
    full: bool = False
    trained: bool = False
    network_options: dict[str, Any] = field(default_factory=dict)

    @property
    def answers(self) -> str:
        """The path of the outputs: `vgg16.npz` for `vgg16.h5`, `vgg16.weights.h5` and `vgg16.keras`."""
        return str(Path(self.file).with_suffix("").with_suffix(".npz"))

    @property
    def backend(self) -> str:
        return "torch" if self.version.startswith("3") else "theano"

    @property
    def framework(self) -> str:
        return f"Keras {self.version} on {'PyTorch' if self.backend == 'torch' else 'Theano 1.0.5'}"

    @property
    def classes(self) -> int | None:
        """None without a top."""
        classes: int | None = self.arguments["classes"]
        return classes

    @property
    def activation(self) -> str:
        """What makes the outputs of the logits; "none" for a file without a top, whose outputs are features."""
        return {"none": "none", "flat": "sigmoid"}.get(self.top, "softmax")

    @property
    def arguments(self) -> dict[str, Any]:
        """The builder's, of the network that the file holds."""
        if self.full:
            return {"classes": 1000}
        network = self.network.removesuffix("-keras1")
        arguments: dict[str, Any] = {"classes": CLASSES[self.top], "widths": WIDTHS[network]}
        if self.top == "standard" and network.startswith("vgg"):
            arguments["hidden"] = VGG_HIDDEN
        if TOPS[self.top]:
            arguments["head"] = TOPS[self.top]
        if self.size != SIZES[network]:
            arguments["size"] = self.size
        return arguments | self.network_options

    def pictures(self) -> np.ndarray:
        """(N, H, W, 3), uint8, RGB."""
        return np.stack([picture(seed, *self.size) for seed in self.seeds])

    @property
    def preprocessing(self) -> Pixels:
        """What comes before the first convolution; layers of the model may be a part of it."""
        in_front: dict[Top, Pixels] = {"rescaling": "unit", "augmentation": "keras-tf"}
        return in_front.get(self.top, self.pixels)

    @property
    def config(self) -> bool:
        """Whether the file has the model's config."""
        return self.form in ("model", ".keras")

    def fed(self) -> np.ndarray:
        """What Keras was fed, in its data format."""
        pictures = as_input(self.pictures(), self.pixels)
        return np.ascontiguousarray(np.moveaxis(pictures, 3, 1) if self.data_format == "channels_first" else pictures)

    def inputs(self) -> np.ndarray:
        """What the first convolution was fed, but always (N, 3, H, W), float32."""
        return np.ascontiguousarray(np.moveaxis(as_input(self.pictures(), self.preprocessing), 3, 1))

    def outputs(self, folder: Path = DATA) -> np.ndarray:
        """Probabilities (N, classes), or features (N, C, h, w) without a top: the framework's own, float32."""
        with np.load(folder / self.answers) as file:
            return file["outputs" if "outputs" in file else "softmax"]


def as_input(pictures: np.ndarray, pixels: Pixels) -> np.ndarray:
    """(N, H, W, 3), 0 to 255, RGB -> the same, float32, as the network wants it."""
    values = pictures.astype(np.float32)
    if pixels == "keras-caffe":
        return values[..., ::-1] - np.array(MEAN[::-1], np.float32)
    if pixels == "rgb-mean":
        return values - np.array(MEAN, np.float32)
    if pixels == "keras-tf":
        return values / np.float32(127.5) - np.float32(1)
    return values / np.float32(255) if pixels == "unit" else values


def of_version(goldens: Iterable[Golden], version: str) -> list[Golden]:
    """Those that one version of Keras writes."""
    return [golden for golden in goldens if golden.version == version]
