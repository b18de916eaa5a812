"""Random models of real Keras 3, drawn by Hypothesis from the table of layers: no wrong answer, and few refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from converters.graph_plan import FUNCTIONS, TRANSLATORS
from converters.readers.keras_words import ACTIVATIONS
from tests.conftest import DATA

COUNT = 300
NOT_DRAWN = {  # classes of tf.keras, of Keras Applications, or too rare
    "ThresholdedReLU", "LayerScale", "CustomScaleLayer", "ops.Divide", "ops.Mish", "ops.Concatenate", "ops.Maximum",
    "ops.Minimum", "SplitTensor", "CrossChannelNormalization", "CenterCrop",
}  # fmt: skip


@pytest.mark.slow
def test_random_models_answer_as_keras_does():
    """The models are the same ones as long as the source is; the first that fails is shrunk and printed."""
    command = [sys.executable, "-W", "ignore", "scripts/random_graphs.py", "--count", str(COUNT), "--json"]
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    done = subprocess.run(command, env=environment, cwd=DATA.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-6000:]
    tally = json.loads(done.stdout)
    refused, notes = sum(tally["refused"].values()), tally["notes"]
    assert tally["count"] >= 0.9 * COUNT
    assert refused + notes.get("too large for float32", 0) + notes.get("multiplies rounding errors", 0) < 0.05 * COUNT
    assert notes["answers depend on the picture"] > 0.75 * COUNT
    assert min(notes["has a map"], notes["has no map"], notes["has a head"], notes["has no head"]) > 0.1 * COUNT
    assert {*TRANSLATORS, *ACTIVATIONS} - NOT_DRAWN <= set(tally["kinds"])
    assert len({*FUNCTIONS} & set(tally["kinds"])) > len(FUNCTIONS) / 2
