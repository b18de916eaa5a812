"""Maps of the Grad-CAM family: their definitions, and that nothing stays on the module."""

from __future__ import annotations

import gc
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from convnets_torch.explain.gradcam import METHODS, CamWarning, Method, Score, cams
from convnets_torch.explain.layer_names import last_convolution
from convnets_torch.networks import vgg16


class Small(nn.Module):
    """Two convolutions and a smooth end; images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3, stride=2)
        self.second = nn.Conv2d(5, 4, 3, padding=1)
        self.last = nn.Linear(4, 6)

    def forward(self, images):
        cells = torch.tanh(self.second(F.relu(self.first(images))))
        return self.after(cells)

    def after(self, cells):
        return self.last((cells + cells**2).mean(dim=(2, 3)))


@pytest.fixture
def small():
    torch.manual_seed(0)
    return Small().double().eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 13, 17, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def narrow_vgg():
    torch.manual_seed(0)
    return vgg16(10, widths=(2, 2, 4, 4, 8), hidden=(8, 8)).eval()


def state_of(module):
    hooks = [(len(each._forward_hooks), len(each._backward_hooks), each.training) for each in module.modules()]
    return hooks, [(p.grad, p.requires_grad, p._version) for p in module.parameters()]


def by_differences(small, images, class_id):
    """The second convolution's output, and the gradient of a logit there by central differences."""
    with torch.no_grad():
        cells = small.second(F.relu(small.first(images)))
        gradients = torch.zeros_like(cells)
        for place in range(cells[0].numel()):
            step = torch.zeros_like(cells).flatten(1)
            step[:, place] = 1e-5
            up, down = (small.after(torch.tanh(cells + sign * step.view_as(cells))) for sign in (1, -1))
            gradients.flatten(1)[:, place] = (up - down)[:, class_id] / 2e-5
    return cells, gradients


def test_the_gradient_of_every_method_is_that_of_finite_differences(small, images):
    cells, gradients = by_differences(small, images, class_id=3)
    positive = gradients.clamp(min=0)
    alphas = gradients**2 / (2 * gradients**2 + gradients**3 * cells.sum(dim=(2, 3), keepdim=True))
    expected: dict[Method, torch.Tensor] = {
        "gradcam": (cells * gradients.mean(dim=(2, 3), keepdim=True)).sum(dim=1),
        "gradcam++": (cells * (alphas * positive).sum(dim=(2, 3), keepdim=True)).sum(dim=1),
        "hirescam": (cells * gradients).sum(dim=1),
        "layercam": (cells * positive).sum(dim=1),
    }
    assert set(expected) == set(METHODS)
    for method, maps in expected.items():
        found = cams(small, images, [3], layer="second", method=method)
        assert found.dtype == torch.float64
        assert found.shape == (1, 2, 6, 8)
        torch.testing.assert_close(found[0], maps.clamp(min=0), rtol=1e-6, atol=1e-9)


def test_groups_and_contrasts_are_the_logits_of_their_softmax(small, images):
    """The score of a group differs from the log of its probability by what does not depend on the group."""
    logits = small(images)
    chances = logits.softmax(dim=1)
    group, contrast = Score((1, 4)), Score((1, 4), against=(0, 2, 5))
    total = chances[:, [1, 4]].sum(dim=1)
    torch.testing.assert_close(group.of(logits), total.log() + logits.logsumexp(dim=1))
    torch.testing.assert_close(contrast.of(logits), (total / chances[:, [0, 2, 5]].sum(dim=1)).log())
    torch.testing.assert_close(Score((2,)).of(logits), logits[:, 2])
    found = cams(small, images, [(1, 4), group, contrast], layer="second")
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert not torch.allclose(found[1], found[2])


def test_several_targets_and_images_are_each_as_alone(narrow):
    inputs = torch.randn(2, 3, *narrow.size, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CamWarning)
        targets: list = [7, (2, 3), Score((1,), (4, 5))]
        together = cams(narrow, inputs, targets)
        for number, target in enumerate(targets):
            for place in range(2):
                alone = cams(narrow, inputs[place : place + 1], [target])
                scale = together[number, place].max().clamp(min=1e-12)
                torch.testing.assert_close(alone[0, 0] / scale, together[number, place] / scale, rtol=1e-3, atol=1e-3)


def test_no_target_is_the_class_with_the_highest_logit_of_each_image(small, images):
    best = small(images).argmax(dim=1).tolist()
    found = cams(small, images, layer="second")
    for place, class_id in enumerate(best):
        torch.testing.assert_close(found[0, place], cams(small, images, [class_id], layer="second")[0, place])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_works_in_any_mode_and_precision(dtype, mode, small, images):
    expected = cams(small, images, [3], layer="second")
    small.to(dtype)
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        found = cams(small, images.to(dtype), [3], layer="second")
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
    assert found.dtype == torch.float32
    assert not found.is_inference()
    assert not found.requires_grad
    tolerance = 0.1 if dtype == torch.bfloat16 else 1e-4
    assert (found - expected).abs().max() < tolerance * expected.max()


def test_a_module_that_was_made_in_inference_mode_works():
    with torch.inference_mode():
        torch.manual_seed(0)
        made, inputs = Small().eval(), torch.randn(1, 3, 13, 17)
    torch.manual_seed(0)
    usual = Small().eval()
    expected = cams(usual, inputs.clone(), [3], layer="second")
    torch.testing.assert_close(cams(made, inputs, [3], layer="second"), expected)
    assert all(parameter.is_inference() for parameter in made.parameters())


def test_layers_that_overwrite_their_input_change_nothing():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)]
    overwriting = nn.Sequential(*layers).eval()
    keeping = nn.Sequential(layers[0], nn.ReLU(), *layers[2:]).eval()
    inputs = torch.randn(2, 3, 9, 12)
    for method in METHODS:
        found, expected = (cams(each, inputs, [1, 2], layer="0", method=method) for each in (overwriting, keeping))
        torch.testing.assert_close(found, expected)


def test_of_a_layer_that_is_called_twice_the_last_call_counts(images):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.last = nn.Linear(3, 4)

        def forward(self, images):
            return self.last(self.conv(F.relu(self.conv(images))).mean(dim=(2, 3)))

    torch.manual_seed(0)
    twice = Twice().double().eval()
    with torch.no_grad():
        cells = twice.conv(F.relu(twice.conv(images)))
    expected = (twice.last.weight[2].view(1, 3, 1, 1) / cells[0, 0].numel() * cells).sum(dim=1).clamp(min=0)
    torch.testing.assert_close(cams(twice, images, [2], layer="conv")[0], expected.detach())


def test_nothing_stays_on_the_module(narrow):
    narrow.requires_grad_(False)
    next(narrow.parameters()).requires_grad_(True)
    before = state_of(narrow)
    inputs = torch.randn(1, 3, *narrow.size, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CamWarning)
        cams(narrow, inputs, [1, 2])
    assert state_of(narrow) == before
    assert inputs.grad is None
    for targets, layer in (([10], None), ([], None), ([1], "head.flatten")):
        with pytest.raises(ValueError, match=r"class 10|empty|not a map"):
            cams(narrow, inputs, targets, layer=layer)
        assert torch.is_grad_enabled()
        assert state_of(narrow) == before


def test_a_map_without_anything_that_speaks_for_the_target_is_zero_with_a_warning(small, images):
    with torch.no_grad():
        small.last.weight[3] = 0
    with pytest.warns(CamWarning, match="2 of 4 maps are zero everywhere"):
        found = cams(small, images, [3, 1], layer="second", method="layercam")
    assert not found[0].any()
    assert found[1].any()
    for method in METHODS:  # 0 / 0 in equation 19, as the paper writes it
        with pytest.warns(CamWarning, match="2 of 2"):
            assert not cams(small, images, [3], layer="second", method=method).any()


def test_what_cannot_be_explained_gets_a_sentence(small, images, narrow_vgg):
    with pytest.raises(ValueError, match="class 6 is out of range for 6 classes; give 0 to 5"):
        cams(small, images, [6], layer="second")
    with pytest.raises(ValueError, match="class -1 is out of range"):
        cams(small, images, [Score((1,), against=(-1,))], layer="second")
    with pytest.raises(ValueError, match="a target has no class"):
        cams(small, images, [()], layer="second")
    with pytest.raises(ValueError, match="last convolution of Small is not known; name a layer"):
        cams(small, images, [1])
    with pytest.raises(ValueError, match=r"no layer 'secnd'; did you mean second\?"):
        cams(small, images, [1], layer="secnd")
    with pytest.raises(ValueError, match="unknown method 'scorecam'; known: gradcam"):
        cams(small, images, [1], layer="second", method="scorecam")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"last gives \(6,\), not a map"):
        cams(small, images, [1], layer="last")
    with pytest.raises(ValueError, match="NaN or infinite"):
        cams(small, images * torch.nan, [1], layer="second")
    with pytest.raises(ValueError, match="network has no head"):
        cams(vgg16(None, widths=(2, 2, 4, 4, 8), hidden=(8, 8)).eval(), torch.zeros(1, 3, 224, 224), [1])


def test_an_end_that_cannot_be_differentiated_gets_a_sentence(images):
    class Cut(Small):
        def after(self, cells):
            return super().after(cells.detach())

    class Beside(Small):
        def after(self, cells):
            return self.last((self.first.weight.sum() + cells.detach()).mean(dim=(2, 3)))

    for made in (Cut, Beside):
        with pytest.raises(ValueError, match=r"(not differentiable with respect to|do not depend on) second"):
            cams(made().double().eval().requires_grad_(made is Beside), images, [1], layer="second")


def test_the_default_layer_is_the_last_convolution(narrow):
    inputs = torch.randn(1, 3, *narrow.size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CamWarning)
        torch.testing.assert_close(cams(narrow, inputs, [1]), cams(narrow, inputs, [1], layer=last_convolution(narrow)))


def test_many_calls_leave_no_tensor(narrow_vgg):
    inputs = torch.randn(1, 3, 224, 224)

    def living() -> int:
        gc.collect()
        return sum(issubclass(type(each), torch.Tensor) for each in gc.get_objects())

    def call() -> None:
        cams(narrow_vgg, inputs, [1, 2], layer="relu4_3", method="layercam")
        with pytest.raises(ValueError, match="class 10"):
            cams(narrow_vgg, inputs, [10])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CamWarning)
        call()
        before = living()
        for _ in range(40):
            call()
    assert living() <= before


def test_without_targets_each_image_is_explained_by_its_own_best_class(small):
    images = 9 * torch.randn(16, 3, 13, 17, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        small.last.bias -= small(images).mean(dim=0)  # so that images differ in their best class
    best = small(images).argmax(dim=1).tolist()
    assert len(set(best)) > 1
    found = cams(small, images, layer="second", method="layercam")
    for number, class_id in enumerate(best):
        alone = cams(small, images[number : number + 1], [class_id], layer="second", method="layercam")
        torch.testing.assert_close(found[:, number], alone[:, 0], rtol=1e-9, atol=1e-12)


def test_a_layer_of_a_single_cell_is_refused():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    with pytest.raises(ValueError, match=r"1 gives \(4, 1, 1\), not a map"):
        cams(module, torch.zeros(1, 3, 8, 9), [0], layer="1")
