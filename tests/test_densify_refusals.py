"""What `densify` cannot do is refused in one sentence that names the layer."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torchvision import models

from convnets_torch import densify
from tests.reference.users_networks import lively, narrow_vgg, sequential


class Gated(nn.Module):
    """Squeeze and excitation, as it is usually written."""

    def __init__(self):
        super().__init__()
        self.rest, self.squeeze, self.excite = nn.Conv2d(3, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 6, 1)
        self.dense = nn.Linear(6, 5)

    def forward(self, x):
        x = self.rest(x)
        x = x * self.excite(self.squeeze(x)).sigmoid()
        return self.dense(x.mean((2, 3)))


class Overwritten(nn.Module):
    """The sum reads what the activation has overwritten: layer by layer it is another network."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu, self.dense = nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.Linear(6, 5)

    def forward(self, x):
        x = self.conv(x)
        return self.dense((self.relu(x) + x).mean((2, 3)))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.dense = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)

    def forward(self, x):
        x = self.conv(x).mean((2, 3))
        return self.dense(x if x.sum() > 0 else -x)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.dense = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)

    def forward(self, x, y):
        return self.dense((self.conv(x) + self.conv(y)).mean((2, 3)))


def ended(*layers):
    return nn.Sequential(nn.Conv2d(3, 6, 3), *layers)


REFUSED = {  # builder, words
    "squeeze and excitation": (Gated, r"squeeze is AdaptiveAvgPool2d, which is not known .* \(in Gated\)"),
    "timm's": (lambda: timm.create_model("seresnet18", num_classes=5), r"call mean, .* \(in SEModule\)"),
    "attention": (lambda: timm.models.VisionTransformer(32, 8, embed_dim=8, depth=1, num_heads=2), "it uses cls_token"),
    "ceil_mode": (lambda: models.SqueezeNet(num_classes=5), r"features.2 is MaxPool2d.*use ceil_mode=False"),
    "timm's average": (lambda: timm.create_model("resnet18d", num_classes=5), r"layer2.0.downsample.0 is AvgPool2d"),
    "MobileNetV3": (lambda: models.mobilenet_v3_small(), r"block.1.avgpool is Adaptive.* \(in SqueezeExcitation\)"),
    "shuffling": (lambda: models.shufflenet_v2_x0_5(), r"call view, which is not known .* \(in InvertedResidual\)"),
    "overwritten": (Overwritten, r"differs from the module's outputs by \d"),
    "branches": (Branching, "cannot be traced layer by layer .*control flow"),
    "two inputs": (Two, r"does not take images .*missing 1 required positional argument: 'y'"),
    "a map": (lambda: ended(), r"it returns \(2, 6, 30, 30\) for images .* instead of logits \(N, classes\)"),
    "no dense layer": (lambda: ended(nn.AvgPool2d(4), nn.Flatten(0, 1)), r"it returns \(12, 7, 7\)"),
    "a lazy layer": (lambda: ended(nn.Flatten(), nn.LazyLinear(5)), "^Sequential .* 2 has no parameters yet; run"),
    "no parameters": (lambda: nn.Sequential(nn.AvgPool2d(32), nn.Flatten()), "it has no parameters"),
    "a head that mixes classes": (
        lambda: ended(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Softmax(1), nn.Linear(6, 5)),
        "3 is Softmax in the head, which cannot slide",
    ),
    "layer normalisation": (
        lambda: ended(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(6), nn.Linear(6, 5)),
        "3 is LayerNorm in the head, which cannot slide",
    ),
    "a map of grey pictures": (lambda: nn.Sequential(nn.Conv2d(1, 6, 3)), r"\(2, 1, 32, 32\) instead of logits"),
    "another size": (lambda: ended(nn.Flatten(), nn.Linear(54, 5)), r"does not take images .*; give the size that it"),
    "other strides": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3, (2, 1)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)),
        "cells are 2 pixels apart vertically and 1 horizontally",
    ),
    "not finite": (lambda: ended(nn.Flatten(), nn.Linear(5400, 5), nn.Hardtanh(torch.nan)), "are not finite"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_what_cannot_be_dense_is_refused_by_name(case):
    build, words = REFUSED[case]
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=words) as refused:
        densify(build().eval(), 32 if case not in ("timm's", "MobileNetV3") else 64)
    assert "\n" not in str(refused.value)


def test_modules_in_training_mode_are_refused():
    module = lively(sequential())
    module[0][1].train()
    with pytest.raises(ValueError, match=r"0\.1 is in training mode, .*; call eval\(\)"):
        densify(module, (32, 48))


def test_adaptive_pools_are_dropped_where_they_do_nothing_and_else_the_sizes_are_named():
    torch.manual_seed(0)
    module = lively(narrow_vgg(batch_norm=False))
    with pytest.raises(
        ValueError, match=r"7 x 7 cells of 8 x 7, .*; give a size of 224 to 255 pixels in height and"
    ) as e:
        densify(module, (256, 224))
    assert "224 to 255 in width" in str(e.value)
    for size in ((224, 255), (255, 224)):
        assert densify(module, size).window == (7, 7)


@pytest.mark.parametrize("size", [0, -3, (32,), (32, 0), True, 32.0, "32", (32, 48, 3), None])
def test_no_size(size):
    with pytest.raises(ValueError, match="give height and width in pixels"):
        densify(lively(sequential()), size)
