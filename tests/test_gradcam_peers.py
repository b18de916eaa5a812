"""The same maps as TorchCAM and pytorch-grad-cam, where these are installed, on the same modules."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from convnets_torch.explain.gradcam import CamWarning, cams
from convnets_torch.explain.layer_names import last_convolution
from tests.conftest import NARROW


def two_maps(module, images, layer, method):
    """The two of ten targets whose maps hold the most: of random weights many are zero everywhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CamWarning)
        found = cams(module, images, range(10), layer=layer, method=method)
    best = found.flatten(1).sum(dim=1).topk(2).indices.tolist()
    assert found[best].flatten(1).amax(dim=1).all()
    return {class_id: found[class_id] for class_id in best}


def narrow_network(name):
    torch.manual_seed(0)
    network = NARROW[name]().eval()
    return network, last_convolution(network), network.size


def torchvision_module(name, layer):
    torch.manual_seed(0)
    return models.get_model(name, num_classes=10).eval(), layer, (64, 96)  # not square


MODULES = {name: (narrow_network, name) for name in ("alexnet", "efficientnet_lite0", "vgg16")} | {
    "resnet18": (torchvision_module, "resnet18", "layer3"),
    "squeezenet": (torchvision_module, "squeezenet1_1", "features.9"),
}


@pytest.fixture(params=MODULES)
def case(request):
    """A module, a layer, and images whose logits differ as those of trained networks do.

    Steep logits, so that the small numbers which the peers add against division by zero do not weigh; in double
    precision, since maps of random weights are small differences of large sums.
    """
    make, *arguments = MODULES[request.param]
    module, layer, size = make(*arguments)
    last = [each for each in module.modules() if isinstance(each, nn.Linear | nn.Conv2d)][-1]
    with torch.no_grad():
        last.weight.mul_(1e6)
    images = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return module.double(), layer, images


def normalized(maps):
    """Each map from 0 at its minimum to 1 at its maximum, as TorchCAM does it."""
    least = maps.amin(dim=(-2, -1), keepdim=True)
    return (maps - least) / ((maps - least).amax(dim=(-2, -1), keepdim=True) + 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["GradCAM", "LayerCAM"])
def test_the_maps_of_torchcam(case, method):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        methods = pytest.importorskip("torchcam.methods")
    module, layer, images = case
    for class_id, found in two_maps(module, images, layer, method.lower()).items():
        with getattr(methods, method)(module, layer) as extractor:
            [expected] = extractor(class_id, module(images.clone().requires_grad_()))
        torch.testing.assert_close(normalized(found), expected, rtol=0, atol=1e-5)


def test_torchcam_leaves_out_the_denominator_of_equation_19(case):
    """Its Grad-CAM++ divides a copy, so its alphas are squared gradients: what it gives is known, and no paper's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        methods = pytest.importorskip("torchcam.methods")
    module, layer, images = case
    seen = []
    hook = module.get_submodule(layer).register_forward_hook(lambda *call: seen.append(call[2]))
    score = module(images)[:, 3].sum()
    hook.remove()
    [gradients] = torch.autograd.grad(score, seen)
    weights = (gradients**2 * gradients.clamp(min=0)).sum(dim=(2, 3), keepdim=True)
    without = (weights * seen[0]).sum(dim=1).clamp(min=0)
    with methods.GradCAMpp(module, layer) as extractor:
        [theirs] = extractor(3, module(images))
    torch.testing.assert_close(normalized(without.detach()), theirs, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["GradCAM", "GradCAMPlusPlus", "HiResCAM", "LayerCAM"])
def test_the_maps_of_pytorch_grad_cam(case, method):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.image import scale_cam_image
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    module, layer, images = case
    for class_id, ours in two_maps(module, images, layer, method.lower().replace("plusplus", "++")).items():
        with getattr(peer, method)(module, [module.get_submodule(layer)]) as extractor:
            expected = extractor(images, [ClassifierOutputTarget(class_id)] * 2)
        scaled = scale_cam_image(ours.numpy(), images.shape[:1:-1])  # enlarged as they do it
        np.testing.assert_allclose(scale_cam_image(scaled), expected, rtol=0, atol=1e-5)
