"""The public names; `lazy_loader` reads them here, and so do mypy and editors."""

import converters.conversion

from .card import Card as Card
from .embeddings.extraction import embed as embed
from .embeddings.extraction import embed_each as embed_each
from .embeddings.extraction import embed_layers as embed_layers
from .embeddings.image_map import make_map as make_map
from .embeddings.index import index_pictures as index_pictures
from .embeddings.probe import embed_classes as embed_classes
from .embeddings.probe import probe as probe
from .embeddings.search import Index as Index
from .evaluation.evaluate import evaluate as evaluate
from .evaluation.labels import find_truth as find_truth
from .explain.activations import record_activations as record_activations
from .explain.filters import filter_patterns as filter_patterns
from .explain.gradcam import gradcam as gradcam
from .explain.gradcam import gradcam_each as gradcam_each
from .explain.gradcam import gradcam_targets as gradcam_targets
from .fcn.densify import densify as densify
from .fcn.graph import cell_strides as cell_strides
from .fcn.score_map import score_map as score_map
from .fcn.sliding import slide as slide
from .heatmaps.api import (
    class_map as class_map,
)
from .heatmaps.api import (
    contrast as contrast,
)
from .heatmaps.api import (
    heatmap as heatmap,
)
from .heatmaps.api import (
    heatmap_targets as heatmap_targets,
)
from .heatmaps.api import (
    probability_map as probability_map,
)
from .heatmaps.many import heatmap_each as heatmap_each
from .images.decoding import read_picture as read_picture
from .images.finding import find_pictures as find_pictures
from .images.preprocessing import Preprocessing as Preprocessing
from .inference.classification import classify as classify
from .inference.classification import classify_each as classify_each
from .inference.engines import engine as engine
from .inference.export import export as export
from .inference.pipeline import predict as predict
from .inference.prepare import prepare as prepare
from .inference.quantization import quantize as quantize
from .networks import (
    AlexNet as AlexNet,
)
from .networks import (
    Network as Network,
)
from .networks import (
    efficientnet_lite0 as efficientnet_lite0,
)
from .networks import (
    inception_v3 as inception_v3,
)
from .networks import (
    resnet50 as resnet50,
)
from .networks import (
    vgg16 as vgg16,
)
from .networks import (
    vgg19 as vgg19,
)
from .training.augmentation import augmentation as augmentation
from .training.datasets import find_dataset as find_dataset
from .training.finetuning import finetune as finetune
from .training.settings import Settings as Settings
from .weights import load as load
from .weights import save as save
from .wordnet import synsets as synsets
from .wordnet.synsets import class_ids as class_ids

__version__: str
__all__: list[str]
convert = converters.conversion.convert
