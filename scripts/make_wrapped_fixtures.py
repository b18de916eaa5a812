"""Make the golden files of models that hold Python code known by its place, with Keras 2.2.4 on TensorFlow 1.15.5.

    python scripts/make_wrapped_fixtures.py tests/data/keras224/wrapped

`multi_gpu_model` makes a Lambda per GPU, which takes its part of the batch; a block of InceptionResNetV2 has one that
adds a scaled branch. Weights and statistics are random, seeded. Beside each file, `.npz` holds four pictures
(4, h, w, 3), 0 to 255, which became input divided by 255, and the answers. The environment is a Python 3.7 with

    pip install tensorflow==1.15.5 'protobuf<3.21' 'h5py<3' 'numpy<1.19' scipy six pyyaml
    pip install --no-deps keras==2.2.4 keras_applications==1.0.8 keras_preprocessing==1.1.0
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

os.environ["KERAS_BACKEND"] = "tensorflow"
import keras  # needs the line above
import keras_applications.inception_resnet_v2 as inception_resnet
import tensorflow
from keras import backend, layers, models, utils
from keras.backend import tensorflow_backend
from keras.utils import multi_gpu_utils

SIZE = (9, 12)


def replicated() -> Any:
    """A functional model on two GPUs, whose results the first gathers."""
    start = layers.Input((*SIZE, 3))
    x = layers.BatchNormalization()(layers.Conv2D(4, 3, activation="relu")(start))
    x = layers.Dense(3, activation="softmax", name="scores")(layers.GlobalAveragePooling2D()(x))
    return multi_gpu_utils.multi_gpu_model(models.Model(start, x), 2)


def replicated_sequential() -> Any:
    """A Sequential on three GPUs."""
    parts = [layers.Conv2D(4, 3, input_shape=(*SIZE, 3)), layers.Flatten(), layers.Dense(3, activation="softmax")]
    return multi_gpu_utils.multi_gpu_model(models.Sequential(parts), 3, cpu_merge=False)


def scaled() -> Any:
    """Two blocks of InceptionResNetV2, with fewer channels."""
    vars(inception_resnet).update(backend=backend, layers=layers, models=models, keras_utils=utils)
    original = inception_resnet.conv2d_bn

    def narrow(x: Any, filters: int, *rest: Any, **words: Any) -> Any:
        filters = filters if words.get("use_bias") else max(2, filters // 32)
        return original(x, filters, *rest, **words)

    inception_resnet.conv2d_bn = narrow
    start = layers.Input((*SIZE, 3))
    x = narrow(start, 64, 3)
    x = inception_resnet.inception_resnet_block(x, scale=0.17, block_type="block35", block_idx=1)
    x = inception_resnet.inception_resnet_block(x, scale=1.0, activation=None, block_type="block8", block_idx=10)
    return models.Model(start, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


def innermost(model: Any) -> Any:
    """The layers of a model and of the models in it."""
    for layer in model.layers:
        yield from innermost(layer) if hasattr(layer, "layers") else [layer]


MODELS = {"multi_gpu": replicated, "multi_gpu_sequential": replicated_sequential, "inception_resnet": scaled}


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the golden files of models with code, on TensorFlow 1.")
    parser.add_argument("folder", type=Path, help="where the files go: tests/data/keras224/wrapped")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    # The CPU computes what stands on GPUs: there may be none.
    backend.set_session(tensorflow.Session(config=tensorflow.ConfigProto(allow_soft_placement=True)))
    multi_gpu_utils._get_available_devices = lambda: ["/cpu:0", "/gpu:0", "/gpu:1", "/gpu:2"]
    tensorflow_backend._is_current_explicit_device = lambda kind: False  # asks TensorFlow 1.15 for what it lacks
    pictures = np.random.RandomState(0).randint(0, 256, (4, *SIZE, 3)).astype(np.uint8)
    for name, build in MODELS.items():
        model, random = build(), np.random.RandomState(1)
        for layer in innermost(model):
            arrays = []
            for weight, array in zip(layer.weights, layer.get_weights()):  # noqa: B905  # Python 3.7
                positive = "variance" in weight.name or "gamma" in weight.name
                arrays.append(random.uniform(0.5, 1.5, array.shape) if positive else random.normal(0, 0.3, array.shape))
            layer.set_weights(arrays)
        model.save(str(folder / f"{name}.h5"))
        outputs = model.predict(pictures / np.float32(255))
        np.savez_compressed(folder / f"{name}.npz", images=pictures, outputs=outputs)
        sys.stdout.write(f"{name}: {(folder / name).with_suffix('.h5').stat().st_size:,} bytes, {outputs[0]}\n")
    sys.stdout.write(f"Keras {keras.__version__}, TensorFlow {tensorflow.__version__}\n")


if __name__ == "__main__":
    main()
