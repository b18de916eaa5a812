"""Classifiers as users have them: plain ones, and narrow ones of torchvision's and timm's own classes."""

from __future__ import annotations

from typing import Any

import torch
from timm.models import resnet as timm_resnet
from timm.models.vgg import VGG as TimmVGG
from torch import nn
from torch.nn import functional as F
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.resnet import ResNet as TorchvisionResNet
from torchvision.models.vgg import VGG as TorchvisionVGG
from torchvision.models.vgg import make_layers

from tests.test_networks import uneven


def lively(module):
    """In eval mode and float64, with weights and statistics for which no layer is idle."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
            uneven(layer)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.uniform_(layer.bias, 0, 0.3)
    return module.eval().double()


def sequential(*, end=(), pool=()):
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(inplace=True)),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, (5, 3), stride=2, padding=(2, 1)),
        nn.ReLU(inplace=True),
        *pool,
        nn.Flatten(),
        nn.Dropout(0.5, inplace=True),
        nn.Linear(8 if pool else 8 * 8 * 12, 12),
        nn.BatchNorm1d(12),
        nn.Sequential(nn.ReLU(inplace=True), nn.Linear(12, 5)),
        *end,
    )


class Tutorial(nn.Module):
    """What tutorials show: functions in `forward`, sizes that are computed."""

    def __init__(self, pool):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 8, 5)
        self.dense1, self.dense2 = nn.Linear(8 * 5 * 5 if pool is None else 8, 12), nn.Linear(12, 5)
        self.pool = pool

    def forward(self, x, scores=True):
        x = F.max_pool2d(F.relu(self.conv1(x), inplace=True), 2)
        x = F.avg_pool2d(F.leaky_relu(self.conv2(x), 0.3), (2, 2), stride=2)
        if self.pool is not None:
            x = self.pool(x)
        x = x.view(x.size(0), -1)
        x = F.dropout(torch.relu(self.dense1(x)), training=self.training)
        x = self.dense2(x)
        return F.log_softmax(x, dim=1) if not scores else x


def narrow_vgg(*, batch_norm):
    features = make_layers([4, "M", 6, "M", 6, "M", 8, "M", 8, "M"], batch_norm=batch_norm)
    network = TorchvisionVGG(features, num_classes=5, init_weights=False)
    network.classifier = nn.Sequential(
        nn.Linear(8 * 49, 12), nn.ReLU(True), nn.Dropout(), nn.Linear(12, 9), nn.ReLU(True), nn.Linear(9, 5)
    )
    return network


def narrow_alexnet():
    network = models.AlexNet(num_classes=5)
    for place, (inputs, outputs) in {0: (3, 4), 3: (4, 6), 6: (6, 8), 8: (8, 6), 10: (6, 6)}.items():
        old = network.features[place]
        network.features[place] = nn.Conv2d(inputs, outputs, old.kernel_size, old.stride, old.padding)
    network.classifier[1] = nn.Linear(6 * 36, 12)
    network.classifier[4], network.classifier[6] = nn.Linear(12, 9), nn.Linear(9, 5)
    return network


def resnet(block, **options):
    return TorchvisionResNet(block, [1, 1, 1, 1], num_classes=5, **options)


def thin_timm_resnet(block: Any):
    return timm_resnet.ResNet(block, (1, 1, 1, 1), num_classes=5)


FAMILIES = {  # builder, size
    "sequential": (sequential, (32, 48)),
    "sequential, average": (lambda: sequential(pool=(nn.AdaptiveAvgPool2d(1),)), (32, 48)),
    "sequential, maximum": (lambda: sequential(pool=(nn.AdaptiveMaxPool2d((1, 1)),)), (32, 48)),
    "sequential, pool of the map's size": (lambda: sequential(pool=(nn.AvgPool2d((8, 12)),)), (32, 48)),
    "functions": (lambda: Tutorial(None), (32, 32)),
    "functions, average": (lambda: Tutorial(lambda x: F.adaptive_avg_pool2d(x, 1)), (32, 40)),
    "functions, mean": (lambda: Tutorial(lambda x: x.mean([-2, -1])), (32, 40)),
    "functions, size of the map": (lambda: Tutorial(lambda x: F.avg_pool2d(x, x.shape[2:])), (32, 40)),
    "torchvision VGG": (lambda: narrow_vgg(batch_norm=False), (224, 224)),
    "torchvision VGG, batch norm": (lambda: narrow_vgg(batch_norm=True), (240, 224)),
    "torchvision AlexNet": (narrow_alexnet, (224, 224)),
    "torchvision ResNet": (lambda: resnet(BasicBlock), (64, 96)),
    "torchvision ResNeXt": (lambda: resnet(Bottleneck, groups=4, width_per_group=4), (64, 64)),
    "torchvision wide ResNet": (lambda: resnet(Bottleneck, width_per_group=128), (64, 64)),
    "torchvision DenseNet": (lambda: models.DenseNet(8, (2, 2, 2, 2), 8, num_classes=5), (64, 96)),
    "torchvision MobileNetV2": (lambda: models.MobileNetV2(5, width_mult=0.25), (64, 96)),
    "timm VGG": (
        lambda: TimmVGG([4, "M", 6, "M", 6, "M", 8, "M", 8, "M"], num_classes=5, mlp_ratio=0.01),
        (224, 224),
    ),
    "timm ResNet": (lambda: thin_timm_resnet(timm_resnet.BasicBlock), (64, 96)),
    "timm ResNet50's blocks": (lambda: thin_timm_resnet(timm_resnet.Bottleneck), (64, 64)),
}  # fmt: skip
if tuple(map(int, torch.__version__.split(".")[:2])) <= (2, 6):  # whose tracer cannot follow sizes into a pool
    del FAMILIES["functions, size of the map"]
