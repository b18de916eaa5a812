"""Networks of Keras Applications against real Keras, one of each family; scripts/check_applications.py has all."""

from __future__ import annotations

from typing import Any

import pytest

from tests.reference.applications import FORMS, LISTED, NAMED, check

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Keras and torch about each other
]
WHOLE = {"VGG16": "vgg16", "ResNet50": "resnet50", "InceptionV3": "inception_v3"}  # networks with classes of their own
IN_CI: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {  # name -> (network, options, containers)
    "VGG16": ("VGG16", {}, (LISTED,)),
    "VGG16, no top": ("VGG16", {"include_top": False}, (NAMED,)),
    "ResNet50": ("ResNet50", {}, (NAMED,)),
    "ResNet50V2": ("ResNet50V2", {}, (LISTED,)),
    "InceptionV3": ("InceptionV3", {}, (LISTED,)),
    "InceptionResNetV2": ("InceptionResNetV2", {}, (NAMED,)),
    "Xception": ("Xception", {}, (LISTED,)),
    "MobileNet": ("MobileNet", {}, FORMS),
    "MobileNetV2": ("MobileNetV2", {"alpha": 0.35}, FORMS),
    "MobileNetV3Small": ("MobileNetV3Small", {}, (LISTED,)),
    "MobileNetV3Small, pooled": ("MobileNetV3Small", {"include_top": False, "pooling": "max"}, (LISTED,)),
    "MobileNetV3Large": ("MobileNetV3Large", {"minimalistic": True}, (NAMED,)),
    "DenseNet121": ("DenseNet121", {}, (NAMED,)),
    "NASNetMobile": ("NASNetMobile", {}, (LISTED,)),
    "EfficientNetB0": ("EfficientNetB0", {}, (LISTED,)),
    "EfficientNetV2B0": ("EfficientNetV2B0", {}, (NAMED,)),
    "ConvNeXtTiny": ("ConvNeXtTiny", {}, (LISTED,)),
    "ConvNeXtTiny, no top": ("ConvNeXtTiny", {"include_top": False}, (NAMED,)),
}


@pytest.mark.parametrize("name", IN_CI)
def test_a_network_answers_as_keras_whole_and_from_weights_alone(name, tmp_path):
    network, options, forms = IN_CI[name]
    row = check(network, options, tmp_path, forms)
    assert row.agrees
    assert row.proof < 1e-5
    assert row.forms == dict.fromkeys(forms, "equal")
    assert row.network == WHOLE.get(network, "graph")
