"""The networks, as plain modules.

Their argument `classes` may also be called `num_classes`, as in torchvision and timm.
"""

from collections.abc import Callable

from convnets_torch.networks.alexnet import AlexNet
from convnets_torch.networks.catalog import CATALOG
from convnets_torch.networks.efficientnet_lite import EfficientNetLite, efficientnet_lite0
from convnets_torch.networks.inception import InceptionV3, inception_v3
from convnets_torch.networks.network import Network
from convnets_torch.networks.resnet import ResNet, resnet50
from convnets_torch.networks.tracing import watch_forks
from convnets_torch.networks.vgg import VGG, vgg16, vgg19

NETWORKS: dict[str, Callable[..., Network]] = {name: spec.build for name, spec in CATALOG.items()}

watch_forks()

__all__ = [
    "CATALOG", "NETWORKS", "VGG", "AlexNet", "EfficientNetLite", "InceptionV3", "Network", "ResNet",
    "efficientnet_lite0", "inception_v3", "resnet50", "vgg16", "vgg19",
]  # fmt: skip
