"""The functions of convnets-keras, for porting scripts; `docs/porting.md` compares old and new calls.

As in the original, inputs are NumPy arrays or tensors (N, 3, H, W), and outputs are probabilities. New code is shorter
with `convnets_torch.load`, `classify` and `heatmap`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import convnets_torch
from convnets_torch.fcn.score_map import score_map
from convnets_torch.files import cache_folder
from convnets_torch.images.decoding import read_picture
from convnets_torch.images.preprocessing import CAFFE_MEAN_RGB
from convnets_torch.networks import NETWORKS, Network
from convnets_torch.text import check_choice
from convnets_torch.weights import load
from convnets_torch.wordnet import synsets

NAMES = {"vgg_16": "vgg16", "vgg_19": "vgg19", "alexnet": "alexnet"}


class Convnet(nn.Module):
    """A network that returns probabilities, for a picture or for each cell, like the original's models.

    Attributes:
        network: the wrapped network, which returns logits.
        heatmap: whether to return a map.
    """

    def __init__(self, network: Network, heatmap: bool) -> None:
        super().__init__()
        self.network = network
        self.heatmap = heatmap

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) from `preprocess_image_batch` -> (N, classes), or (N, classes, h, w) for a heatmap."""
        logits = score_map(self.network, images) if self.heatmap else self.network(images)
        return logits.softmax(dim=1)

    def predict(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """As `forward`, on arrays and without gradients."""
        with torch.inference_mode():
            return self(torch.from_numpy(images).to(next(self.parameters()))).float().cpu().numpy()


def convnet(
    network: str,
    weights_path: str | os.PathLike[str] | None = None,
    heatmap: bool = False,
    trainable: Sequence[str] | None = None,
) -> Convnet:
    """Build a network by its name in convnets-keras.

    Args:
        network: "vgg_16", "vgg_19" or "alexnet".
        weights_path: the original's `.h5`, which is converted into the user's cache the first time, or a
            `.safetensors`; None gives random weights.
        heatmap: return a map of probabilities for pictures of any size.
        trainable: names of the layers that stay trainable ("dense_3"); None for all.

    Returns:
        A module in eval mode that maps images (N, 3, H, W) to probabilities: (N, 1000), or (N, 1000, h, w).

    Raises:
        ValueError: unknown network or layer, or weights of another network.
        OSError: the weights cannot be read.

    >>> model = convnet("alexnet", "alexnet_weights.h5", heatmap=True)
    >>> model.predict(preprocess_image_batch(["street.jpg"])).shape
    (1, 1000, 3, 6)
    """
    check_choice(network, NAMES, "network")
    built = NETWORKS[NAMES[network]]() if weights_path is None else _load(Path(weights_path))
    if built.card is not None and built.card.network != NAMES[network]:
        raise ValueError(f"{weights_path} holds {built.card.network}, not {network}; name the other network or file")
    if trainable is not None:
        _freeze_all_but(built, trainable)
    return Convnet(built, heatmap).eval()


def _load(path: Path) -> Network:
    """Load `.safetensors` or `.h5`; the latter is converted once, into the cache, under its name and sha256."""
    if path.suffix.lower() not in (".h5", ".hdf5"):
        return load(path)
    from convnets_torch.files import check_regular, sha256

    check_regular(path)
    converted = cache_folder() / f"{path.stem}-{sha256(path)[:16]}.safetensors"
    if not converted.is_file():
        converted.parent.mkdir(parents=True, exist_ok=True)
        convnets_torch.convert(path, converted)
    return load(converted)


def _freeze_all_but(network: Network, layers: Sequence[str]) -> None:
    owners = {name: name.split(".")[-2] for name, _ in network.named_parameters()}  # "head.dense_3.bias" -> "dense_3"
    if unknown := sorted(set(layers) - set(owners.values())):
        known = ", ".join(dict.fromkeys(owners.values()))
        raise ValueError(f"unknown layers {', '.join(unknown)}; with weights are {known}")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(owners[name] in layers)


def preprocess_image_batch(
    image_paths: Iterable[str | os.PathLike[str]],
    img_size: tuple[int, int] | None = None,
    crop_size: tuple[int, int] | None = None,
    color_mode: str = "rgb",
    out: Any = None,
) -> NDArray[np.float32] | None:
    """Preprocess pictures for the original's networks: mean colour subtracted, channels first.

    Args:
        image_paths: the pictures; EXIF rotation is ignored, as in the original.
        img_size: (height, width) to resize to, ignoring the aspect ratio; Pillow's bilinear on 8-bit pixels.
        crop_size: (height, width) of the centre crop of `img_size`.
        color_mode: "rgb" for AlexNet, "bgr" for VGG16 and VGG19.
        out: object with `append`, which receives the batch; None is returned then.

    Returns:
        (N, 3, H, W) float32.

    Raises:
        ValueError: pictures differ in size and `img_size` is None, or `crop_size` has no or a smaller `img_size`.
        OSError: a picture is missing or broken.

    >>> preprocess_image_batch(["street.jpg"], img_size=(256, 256), crop_size=(227, 227)).shape
    (1, 3, 227, 227)
    """
    check_choice(color_mode, ("rgb", "bgr"), "color_mode")
    if isinstance(image_paths, str | os.PathLike):
        raise ValueError(f"image_paths is {image_paths!r}; give a list of paths")
    if crop_size is not None and (img_size is None or crop_size[0] > img_size[0] or crop_size[1] > img_size[1]):
        raise ValueError(f"crop_size {crop_size} is cut from img_size {img_size}; give an img_size that holds it")
    batch = []
    for path in image_paths:
        pixels = read_picture(path, exif=False)
        if img_size is not None:
            image = Image.fromarray(pixels).resize((img_size[1], img_size[0]), Image.Resampling.BILINEAR)
            pixels = np.asarray(image)
        values = (pixels.astype(np.float32) - np.asarray(CAFFE_MEAN_RGB, np.float32)).transpose(2, 0, 1)
        if color_mode == "bgr":
            values = values[::-1]
        if crop_size is not None and img_size is not None:
            top, left = ((whole - part) // 2 for whole, part in zip(img_size, crop_size, strict=True))
            bottom, right = ((whole + part) // 2 for whole, part in zip(img_size, crop_size, strict=True))
            values = values[:, top:bottom, left:right]
        batch.append(values)
    if len({values.shape for values in batch}) > 1:
        raise ValueError("when img_size and crop_size are None, images in image_paths must have the same shapes")
    stacked = np.ascontiguousarray(np.stack(batch))
    if out is None:
        return stacked
    out.append(stacked)
    return None


def synset_to_dfs_ids(synset: str) -> list[int]:
    """Class ids below a synset, depth first, *with repeats*: once for each path to a class.

    Summing probabilities over this list counts such classes several times, as the original did;
    `convnets_torch.class_ids` lists each once.

    >>> len(synset_to_dfs_ids("n04576211")), len(set(synset_to_dfs_ids("n04576211")))
    (46, 44)
    """
    found = synsets.find(synset)
    ids = [class_id] if (class_id := synset_to_id(found.wnid)) is not None else []
    for child in found.children:
        ids += synset_to_dfs_ids(child)
    return ids


def synset_to_id(synset: str) -> int | None:
    """Class id of a wnid, 0 to 999; None if the synset is not a class. (The original always raises.)

    >>> synset_to_id("n02108422"), synset_to_id("n02084071")
    (243, None)
    """
    found = synsets.find(synset)
    return next((class_id for class_id in found.class_ids if synsets.wnid(class_id) == found.wnid), None)


def id_to_synset(id_: int) -> str:
    """wnid of a class id, 0 to 999.

    >>> id_to_synset(243)
    'n02108422'
    """
    return synsets.wnid(id_)


def id_to_words(id_: int) -> str:
    """Words of a class id, 0 to 999.

    >>> id_to_words(243)
    'bull mastiff'
    """
    return synsets.words(id_)


def pprint_output(out: NDArray[np.floating[Any]], n_max_synsets: int = 10) -> None:
    """Print the most probable classes of one output (1000,), in per cent. (The original always prints ten.)

    >>> import numpy as np
    >>> pprint_output(np.eye(1000)[243], n_max_synsets=1)
    100.00 : bull mastiff
    """
    for class_id in np.argsort(out)[::-1][:n_max_synsets]:
        print(f"{100 * out[class_id]:.2f} : {synsets.words(class_id)}")  # noqa: T201 - its purpose
