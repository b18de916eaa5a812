"""An HTML page that explains a prediction: top classes, heatmaps, Grad-CAM and activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn
from typing_extensions import Unpack

from convnets_torch.explain.activations import layer_names
from convnets_torch.explain.channels import ChannelGrid, activation_grids
from convnets_torch.explain.gradcam import Method, gradcam_targets
from convnets_torch.explain.gradcam_maps import GradCam, overlaid
from convnets_torch.explain.layer_names import find_layers
from convnets_torch.fcn.sliding import ELEMENTWISE
from convnets_torch.files import Output, Writer
from convnets_torch.heatmaps.api import Heatmap, heatmap_targets
from convnets_torch.images.decoding import Picture, Reading, ReadingKeywords, decode, picture_name, warn
from convnets_torch.images.levels import shown
from convnets_torch.images.preprocessing import Pixels
from convnets_torch.inference.classification import Prediction, card_of, classify
from convnets_torch.networks import Network
from convnets_torch.networks.network import as_network
from convnets_torch.options import checked, shows
from convnets_torch.visualization.overlays import overlay
from convnets_torch.visualization.pages import data_uri, save_page

TOP = 5
LAYERS = 5
CHANNELS = 32  # per layer
WIDTH = 640  # maximum width of pictures in pixels
METHOD_WORDS = {"gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++", "hirescam": "HiResCAM", "layercam": "LayerCAM"}


@dataclass(frozen=True, eq=False)
class Explanation:
    """A network's prediction for a picture, with its maps and activations.

    Attributes:
        name: file name of the picture.
        picture: (H, W, 3) uint8, RGB, or RGBA for a network that reads it.
        predictions: the most probable classes, best first.
        heatmaps: one per prediction.
        cams: one Grad-CAM map per prediction.
        grids: channels of layers, from first to last.
        network: name and number of classes, such as "vgg16, 1000 classes".
    """

    name: str
    picture: Pixels
    predictions: list[Prediction]
    heatmaps: list[Heatmap]
    cams: list[GradCam]
    grids: list[ChannelGrid]
    network: str

    def save(self, path: Output) -> None:
        """Write one self-contained .html file atomically; it loads nothing and runs no script."""
        Writer("an explanation", dict.fromkeys((".html", ".htm"), _write)).write(path, self)


@shows(ReadingKeywords, Reading)
def explain(
    network: Network,
    image: Picture,
    *,
    top: int = TOP,
    layers: str | Sequence[str] | None = None,
    method: Method = "gradcam",
    **reading: Unpack[ReadingKeywords],
) -> Explanation:
    """Explain a network's prediction for a picture.

    Args:
        network: in eval mode and with a card, as `load` returns it.
        image: anything `read_picture` takes.
        top: number of classes to explain, at most the number of classes.
        layers: layers whose activations to show, as in `find_layers`; defaults to five activations spread over
            `features`.
        method: as in `gradcam`.
        reading: as in `read_picture`.

    Raises:
        OSError: the picture is missing or broken.
        ValueError: the picture is too narrow for a heatmap, a layer or method is unknown, or the network has no card,
            no head, or is in training mode.

    >>> from convnets_torch import load
    >>> explanation = explain(load("alexnet.safetensors"), "street.jpg")
    >>> len(explanation.heatmaps), [grid.layer for grid in explanation.grids][-1]
    (5, 'features.relu_5')
    >>> explanation.save("street.html")
    """
    network = as_network(network)
    card = card_of(network)
    decoded = decode(image, Reading(**checked(reading, ReadingKeywords)).for_rule(card.preprocessing))
    warn(decoded.notes)
    pixels = decoded.pixels
    layers = five_layers(network) if layers is None else find_layers(network, layers)
    [predictions] = classify(network, [pixels], top=min(top, card.classes))
    class_ids = [entry.class_id for entry in predictions]
    return Explanation(
        name=Path(picture_name(image)).name,
        picture=pixels,
        predictions=predictions,
        heatmaps=heatmap_targets(network, pixels, class_ids, upscale=True),
        cams=gradcam_targets(network, pixels, class_ids, method=method),
        grids=activation_grids(network, pixels, layers, channels=CHANNELS),
        network=f"{card.network}, {card.classes} classes",
    )


def five_layers(network: Network) -> list[str]:
    """Return the names of five evenly spaced activations of `features`, or of any maps if it has fewer than five."""
    maps = [layer for layer in layer_names(network) if layer.name.startswith("features.") and len(layer.shape) == 3]
    modules = [network.get_submodule(layer.name) for layer in maps]
    active = [
        layer
        for layer, module in zip(maps, modules, strict=True)
        if isinstance(module, ELEMENTWISE) and not isinstance(module, nn.Dropout | nn.Identity)
    ]
    names = [layer.name for layer in (active if len(active) >= LAYERS else maps)]
    places = np.unique(np.linspace(0, len(names) - 1, LAYERS).round().astype(int))
    return [names[place] for place in places]


def _write(path: Path, found: Explanation) -> None:
    save_page(
        path,
        "explain.html",
        title=f"{found.name}: {found.predictions[0].words.split(', ')[0]}?",
        found=found,
        classes=list(zip(found.predictions, found.heatmaps, found.cams, strict=True)),
        method=METHOD_WORDS[found.cams[0].method],
        jpeg=_jpeg,
        data_uri=data_uri,
        overlay=overlay,
        overlaid=overlaid,
    )


def _jpeg(image: Pixels | Image.Image) -> str:
    if not isinstance(image, Image.Image):
        image = Image.fromarray(shown(image))
    if image.width > WIDTH:
        image = image.resize((WIDTH, max(1, round(image.height * WIDTH / image.width))), Image.Resampling.LANCZOS)
    return data_uri(image, "JPEG")
