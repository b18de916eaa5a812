"""State dicts of torchvision's VGG and ResNet50, converted, answer as torchvision's networks do."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from converters import convert
from convnets_torch.weights import load


def theirs(name, classes, *, narrow=True):
    """torchvision's network with random weights and statistics; a VGG with fewer channels and hidden units."""
    torch.manual_seed(0)
    if name == "resnet50":
        network = torchvision.models.resnet50(num_classes=classes)
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                for array in layer.state_dict().values():
                    if array.is_floating_point():
                        array.uniform_(0.5, 2.0)
        return network.eval()
    if not narrow:
        return getattr(torchvision.models, name)(num_classes=classes).eval()
    widths, depths = (8, 16, 32, 64, 64), (2, 2, 3, 3, 3) if name == "vgg16" else (2, 2, 4, 4, 4)
    plan = [part for width, depth in zip(widths, depths, strict=True) for part in (*[width] * depth, "M")]
    network = torchvision.models.VGG(torchvision.models.vgg.make_layers(plan), num_classes=classes)
    network.classifier[0] = nn.Linear(64 * 7 * 7, 24)
    network.classifier[3] = nn.Linear(24, 40)
    network.classifier[6] = nn.Linear(40, classes)
    return network.eval()


def agree(original, path, folder):
    torch.save(original.state_dict(), path)
    report = convert(path, folder / "ours.safetensors")
    network = load(report.destination)
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = original(images)
        assert (network(images) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    return report


@pytest.mark.slow
@pytest.mark.parametrize(("name", "classes"), [("vgg16", 1000), ("vgg19", 7), ("resnet50", 7)])
def test_a_converted_network_answers_as_torchvisions(name, classes, tmp_path):
    card = agree(theirs(name, classes), tmp_path / f"{name}.pth", tmp_path).card
    assert card.network == name
    assert card.arguments["classes"] == classes
    assert card.preprocessing.name == "torchvision"
    assert card.class_names == ("imagenet-1k" if classes == 1000 else None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16", "vgg19"])
def test_so_does_one_of_full_size(name, tmp_path):
    agree(theirs(name, 1000, narrow=False), tmp_path / f"{name}.pth", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"layer3.2.bn2.running_var": None},
            r"not a complete resnet50: the array for .*conv4_block3.bn_2.running_var is",
        ),
        ({"extra.weight": torch.zeros(3)}, r"not a complete resnet50: extra\.weight is unknown"),
        ({"layer1.0.conv1.bias": torch.zeros(64)}, r"layer1\.0\.conv1\.bias is unknown"),
        ({"fc.weight": torch.zeros(7, 9)}, r"fc\.weight is \(7, 9\), not \(7, 2048\)"),
        ({"fc.weight": torch.tensor(3.0)}, r"fc\.weight is \(\), not \(1000, 2048\)"),
    ],
)
def test_a_resnet50_that_is_not_whole_is_refused(change, message, tmp_path):
    state = {**theirs("resnet50", 7).state_dict(), **change}
    torch.save({name: array for name, array in state.items() if array is not None}, tmp_path / "in.pth")
    with pytest.raises(ValueError, match=message):
        convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_other_networks_of_torchvision_are_not_taken_for_these(tmp_path):
    for name in ("alexnet", "resnet18", "vgg16_bn", "mobilenet_v2"):
        with torch.device("meta"):
            names = getattr(torchvision.models, name)().state_dict()
        torch.save({each: torch.zeros(2) for each in names}, tmp_path / "in.pth")
        with pytest.raises(
            ValueError, match=r"not known here.*known are efficientnet_lite0, vgg16, vgg19, resnet50|not a complete"
        ):
            convert(tmp_path / "in.pth", tmp_path / "out.safetensors")
