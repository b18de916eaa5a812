"""All networks by name. A new network gets its own file, which ends with its `NetworkSpec`, and an entry here."""

from collections.abc import Mapping

from convnets_torch.networks.alexnet import ALEXNET
from convnets_torch.networks.efficientnet_lite import EFFICIENTNET_LITE0
from convnets_torch.networks.inception import INCEPTION_V3
from convnets_torch.networks.network import NetworkSpec
from convnets_torch.networks.resnet import RESNET50
from convnets_torch.networks.vgg import VGG16, VGG19

CATALOG: Mapping[str, NetworkSpec] = {
    spec.name: spec for spec in (ALEXNET, EFFICIENTNET_LITE0, INCEPTION_V3, RESNET50, VGG16, VGG19)
}
