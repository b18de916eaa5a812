"""AlexNet, VGG, ResNet50, InceptionV3 and EfficientNet-Lite0 in PyTorch, with heatmaps, from Keras weights.

Names are resolved on first use, so that importing the package costs nothing.

>>> import convnets_torch
>>> convnets_torch.class_ids("dog") == list(range(151, 269))
True
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from converters.conversion import Report as Report
    from converters.conversion import convert as convert
    from convnets_torch.adoption import densify as densify
    from convnets_torch.backoff import Answer as Answer
    from convnets_torch.backoff import back_off as back_off
    from convnets_torch.card import Card as Card
    from convnets_torch.card import Source as Source
    from convnets_torch.card import read_card as read_card
    from convnets_torch.classification import Classified as Classified
    from convnets_torch.classification import Prediction as Prediction
    from convnets_torch.classification import classify as classify
    from convnets_torch.classification import classify_each as classify_each
    from convnets_torch.embeddings.duplicates import Leak as Leak
    from convnets_torch.embeddings.duplicates import find_duplicates as find_duplicates
    from convnets_torch.embeddings.duplicates import find_leaks as find_leaks
    from convnets_torch.embeddings.extraction import Embedded as Embedded
    from convnets_torch.embeddings.extraction import Embedder as Embedder
    from convnets_torch.embeddings.extraction import embed as embed
    from convnets_torch.embeddings.extraction import embed_each as embed_each
    from convnets_torch.embeddings.index import Indexed as Indexed
    from convnets_torch.embeddings.index import index_pictures as index_pictures
    from convnets_torch.embeddings.map_files import MapEntry as MapEntry
    from convnets_torch.embeddings.map_files import SavedMap as SavedMap
    from convnets_torch.embeddings.map_files import load_map as load_map
    from convnets_torch.embeddings.map_files import save_map as save_map
    from convnets_torch.embeddings.maps import ImageMap as ImageMap
    from convnets_torch.embeddings.maps import MapWarning as MapWarning
    from convnets_torch.embeddings.maps import make_map as make_map
    from convnets_torch.embeddings.nearest import nearest as nearest
    from convnets_torch.embeddings.pooling import pooled as pooled
    from convnets_torch.embeddings.probe_features import LabelledVectors as LabelledVectors
    from convnets_torch.embeddings.probe_features import embed_classes as embed_classes
    from convnets_torch.embeddings.probe_heads import with_probe as with_probe
    from convnets_torch.embeddings.probe_pairs import Pairs as Pairs
    from convnets_torch.embeddings.probe_pairs import count_pairs as count_pairs
    from convnets_torch.embeddings.probe_pictures import draw_confusion as draw_confusion
    from convnets_torch.embeddings.probe_pictures import draw_curve as draw_curve
    from convnets_torch.embeddings.probe_pictures import draw_pairs as draw_pairs
    from convnets_torch.embeddings.probes import LinearProbe as LinearProbe
    from convnets_torch.embeddings.probes import Probed as Probed
    from convnets_torch.embeddings.probes import fit_probe as fit_probe
    from convnets_torch.embeddings.probes import probe as probe
    from convnets_torch.embeddings.searching import Index as Index
    from convnets_torch.embeddings.searching import Match as Match
    from convnets_torch.embeddings.searching import Matches as Matches
    from convnets_torch.embeddings.searching import recall as recall
    from convnets_torch.embeddings.vector_files import SavedVectors as SavedVectors
    from convnets_torch.embeddings.vector_files import save_vectors as save_vectors
    from convnets_torch.embeddings.vector_reading import ReadVectors as ReadVectors
    from convnets_torch.embeddings.vector_reading import read_vectors as read_vectors
    from convnets_torch.engines import Engine as Engine
    from convnets_torch.engines import engine as engine
    from convnets_torch.explain.activations import record_activations as record_activations
    from convnets_torch.explain.cam_maps import GradCam as GradCam
    from convnets_torch.explain.cam_maps import save_cams as save_cams
    from convnets_torch.explain.cam_running import Explained as Explained
    from convnets_torch.explain.cam_running import gradcam as gradcam
    from convnets_torch.explain.cam_running import gradcam_each as gradcam_each
    from convnets_torch.explain.faithfulness import Faithfulness as Faithfulness
    from convnets_torch.explain.faithfulness import measure_faithfulness as measure_faithfulness
    from convnets_torch.explain.filters import FilterPatterns as FilterPatterns
    from convnets_torch.explain.filters import class_patterns as class_patterns
    from convnets_torch.explain.filters import filter_patterns as filter_patterns
    from convnets_torch.explain.gradcam import CamWarning as CamWarning
    from convnets_torch.explain.gradcam import Score as Score
    from convnets_torch.explain.gradcam import cams as cams
    from convnets_torch.explain.grids import ChannelGrid as ChannelGrid
    from convnets_torch.explain.grids import activation_grids as activation_grids
    from convnets_torch.explain.grids import save_grids as save_grids
    from convnets_torch.explain.kernels import FirstKernels as FirstKernels
    from convnets_torch.explain.kernels import first_kernels as first_kernels
    from convnets_torch.explain.layers import Layer as Layer
    from convnets_torch.explain.layers import layer_names as layer_names
    from convnets_torch.explain.patches import Patch as Patch
    from convnets_torch.explain.patches import TopPatches as TopPatches
    from convnets_torch.explain.patches import top_patches as top_patches
    from convnets_torch.explain.report import Explanation as Explanation
    from convnets_torch.explain.statistics import ChannelStatistics as ChannelStatistics
    from convnets_torch.explain.statistics import FolderStatistics as FolderStatistics
    from convnets_torch.explain.statistics import ZeroShares as ZeroShares
    from convnets_torch.explain.statistics import channel_statistics as channel_statistics
    from convnets_torch.explain.statistics import save_statistics as save_statistics
    from convnets_torch.explain.statistics import zero_shares as zero_shares
    from convnets_torch.exports import Exported as Exported
    from convnets_torch.exports import export as export
    from convnets_torch.fitting import MemoryWarning as MemoryWarning
    from convnets_torch.folders import find_pictures as find_pictures
    from convnets_torch.heatmaps import Box as Box
    from convnets_torch.heatmaps import CellMap as CellMap
    from convnets_torch.heatmaps import ClassMap as ClassMap
    from convnets_torch.heatmaps import Contrast as Contrast
    from convnets_torch.heatmaps import Heatmap as Heatmap
    from convnets_torch.heatmaps import ProbabilityMap as ProbabilityMap
    from convnets_torch.heatmaps import Region as Region
    from convnets_torch.heatmaps import class_map as class_map
    from convnets_torch.heatmaps import contrast as contrast
    from convnets_torch.heatmaps import heatmap as heatmap
    from convnets_torch.heatmaps import probability_map as probability_map
    from convnets_torch.heatmaps import save_sheet as save_sheet
    from convnets_torch.images import PictureWarning as PictureWarning
    from convnets_torch.images import read_picture as read_picture
    from convnets_torch.labelled import find_classes as find_classes
    from convnets_torch.last_layers import with_last_layer as with_last_layer
    from convnets_torch.maps.batches import Mapped as Mapped
    from convnets_torch.maps.batches import heatmap_each as heatmap_each
    from convnets_torch.networks import NETWORKS as NETWORKS
    from convnets_torch.networks import VGG as VGG
    from convnets_torch.networks import AlexNet as AlexNet
    from convnets_torch.networks import EfficientNetLite as EfficientNetLite
    from convnets_torch.networks import InceptionV3 as InceptionV3
    from convnets_torch.networks import Network as Network
    from convnets_torch.networks import ResNet as ResNet
    from convnets_torch.networks import cell_strides as cell_strides
    from convnets_torch.networks import efficientnet_lite0 as efficientnet_lite0
    from convnets_torch.networks import inception_v3 as inception_v3
    from convnets_torch.networks import resnet50 as resnet50
    from convnets_torch.networks import score_map as score_map
    from convnets_torch.networks import slide as slide
    from convnets_torch.networks import vgg16 as vgg16
    from convnets_torch.networks import vgg19 as vgg19
    from convnets_torch.pipeline import Predicted as Predicted
    from convnets_torch.pipeline import predict as predict
    from convnets_torch.preprocessing import Preprocessing as Preprocessing
    from convnets_torch.runtime import prepare as prepare
    from convnets_torch.sources import open_source as open_source
    from convnets_torch.synsets import class_ids as class_ids
    from convnets_torch.targets import Target as Target
    from convnets_torch.training.augmentation import Augmentation as Augmentation
    from convnets_torch.training.augmentation import augmentation as augmentation
    from convnets_torch.training.calibration import Calibration as Calibration
    from convnets_torch.training.calibration import Recalibration as Recalibration
    from convnets_torch.training.calibration import Temperature as Temperature
    from convnets_torch.training.calibration import calibrate as calibrate
    from convnets_torch.training.calibration import fit_temperature as fit_temperature
    from convnets_torch.training.calibration import recalibrate as recalibrate
    from convnets_torch.training.datasets import Dataset as Dataset
    from convnets_torch.training.datasets import find_dataset as find_dataset
    from convnets_torch.training.evaluation import Evaluation as Evaluation
    from convnets_torch.training.evaluation import evaluate as evaluate
    from convnets_torch.training.evaluation_outputs import Judged as Judged
    from convnets_torch.training.evaluation_outputs import judge as judge
    from convnets_torch.training.evaluation_tables import save_predictions as save_predictions
    from convnets_torch.training.finetuning import Finetuned as Finetuned
    from convnets_torch.training.finetuning import LeakError as LeakError
    from convnets_torch.training.finetuning import Watch as Watch
    from convnets_torch.training.finetuning import finetune as finetune
    from convnets_torch.training.ground_truth import GroundTruth as GroundTruth
    from convnets_torch.training.ground_truth import find_truth as find_truth
    from convnets_torch.training.mistakes import Mistakes as Mistakes
    from convnets_torch.training.mistakes import find_mistakes as find_mistakes
    from convnets_torch.training.running import Reports as Reports
    from convnets_torch.training.running import TrainingStopped as TrainingStopped
    from convnets_torch.training.settings import Settings as Settings
    from convnets_torch.training.severity import Severity as Severity
    from convnets_torch.training.severity import measure_severity as measure_severity
    from convnets_torch.training.temperatures import with_temperature as with_temperature
    from convnets_torch.weights import list_networks as list_networks
    from convnets_torch.weights import load as load
    from convnets_torch.weights import save as save

_HOMES = {
    "converters.conversion": ("Report", "convert"),
    "convnets_torch.adoption": ("densify",),
    "convnets_torch.backoff": ("Answer", "back_off"),
    "convnets_torch.card": ("Card", "Source", "read_card"),
    "convnets_torch.classification": ("Classified", "Prediction", "classify", "classify_each"),
    "convnets_torch.embeddings.duplicates": ("Leak", "find_duplicates", "find_leaks"),
    "convnets_torch.embeddings.extraction": ("Embedded", "Embedder", "embed", "embed_each"),
    "convnets_torch.embeddings.index": ("Indexed", "index_pictures"),
    "convnets_torch.embeddings.map_files": ("MapEntry", "SavedMap", "load_map", "save_map"),
    "convnets_torch.embeddings.maps": ("ImageMap", "MapWarning", "make_map"),
    "convnets_torch.embeddings.nearest": ("nearest",),
    "convnets_torch.embeddings.pooling": ("pooled",),
    "convnets_torch.embeddings.probe_features": ("LabelledVectors", "embed_classes"),
    "convnets_torch.embeddings.probe_heads": ("with_probe",),
    "convnets_torch.embeddings.probe_pairs": ("Pairs", "count_pairs"),
    "convnets_torch.embeddings.probe_pictures": ("draw_confusion", "draw_curve", "draw_pairs"),
    "convnets_torch.embeddings.probes": ("LinearProbe", "Probed", "fit_probe", "probe"),
    "convnets_torch.embeddings.searching": ("Index", "Match", "Matches", "recall"),
    "convnets_torch.embeddings.vector_files": ("SavedVectors", "save_vectors"),
    "convnets_torch.embeddings.vector_reading": ("ReadVectors", "read_vectors"),
    "convnets_torch.engines": ("Engine", "engine"),
    "convnets_torch.explain.activations": ("record_activations",),
    "convnets_torch.explain.cam_maps": ("GradCam", "save_cams"),
    "convnets_torch.explain.cam_running": ("Explained", "gradcam", "gradcam_each"),
    "convnets_torch.explain.faithfulness": ("Faithfulness", "measure_faithfulness"),
    "convnets_torch.explain.filters": ("FilterPatterns", "class_patterns", "filter_patterns"),
    "convnets_torch.explain.gradcam": ("CamWarning", "Score", "cams"),
    "convnets_torch.explain.grids": ("ChannelGrid", "activation_grids", "save_grids"),
    "convnets_torch.explain.kernels": ("FirstKernels", "first_kernels"),
    "convnets_torch.explain.layers": ("Layer", "layer_names"),
    "convnets_torch.explain.patches": ("Patch", "TopPatches", "top_patches"),
    "convnets_torch.explain.report": ("Explanation",),
    "convnets_torch.explain.statistics": (
        "ChannelStatistics", "FolderStatistics", "ZeroShares", "channel_statistics", "save_statistics",
        "zero_shares",
    ),
    "convnets_torch.exports": ("Exported", "export"),
    "convnets_torch.fitting": ("MemoryWarning",),
    "convnets_torch.folders": ("find_pictures",),
    "convnets_torch.labelled": ("find_classes",),
    "convnets_torch.heatmaps": (
        "Box", "CellMap", "ClassMap", "Contrast", "Heatmap", "ProbabilityMap", "Region", "class_map",
        "contrast", "heatmap", "probability_map", "save_sheet",
    ),
    "convnets_torch.images": ("PictureWarning", "read_picture"),
    "convnets_torch.last_layers": ("with_last_layer",),
    "convnets_torch.maps.batches": ("Mapped", "heatmap_each"),
    "convnets_torch.networks": (
        "AlexNet", "EfficientNetLite", "InceptionV3", "NETWORKS", "Network", "ResNet", "VGG", "cell_strides",
        "efficientnet_lite0", "inception_v3", "resnet50", "score_map", "slide", "vgg16", "vgg19",
    ),
    "convnets_torch.pipeline": ("Predicted", "predict"),
    "convnets_torch.preprocessing": ("Preprocessing",),
    "convnets_torch.runtime": ("prepare",),
    "convnets_torch.sources": ("open_source",),
    "convnets_torch.synsets": ("class_ids",),
    "convnets_torch.targets": ("Target",),
    "convnets_torch.training.augmentation": ("Augmentation", "augmentation"),
    "convnets_torch.training.calibration": (
        "Calibration", "Recalibration", "Temperature", "calibrate", "fit_temperature", "recalibrate",
    ),
    "convnets_torch.training.datasets": ("Dataset", "find_dataset"),
    "convnets_torch.training.evaluation": ("Evaluation", "evaluate"),
    "convnets_torch.training.evaluation_outputs": ("Judged", "judge"),
    "convnets_torch.training.evaluation_tables": ("save_predictions",),
    "convnets_torch.training.finetuning": ("Finetuned", "LeakError", "Watch", "finetune"),
    "convnets_torch.training.ground_truth": ("GroundTruth", "find_truth"),
    "convnets_torch.training.mistakes": ("Mistakes", "find_mistakes"),
    "convnets_torch.training.running": ("Reports", "TrainingStopped"),
    "convnets_torch.training.settings": ("Settings",),
    "convnets_torch.training.severity": ("Severity", "measure_severity"),
    "convnets_torch.training.temperatures": ("with_temperature",),
    "convnets_torch.weights": ("list_networks", "load", "save"),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_SUBMODULES = (
    "adoption", "ahead", "algebra", "allocation", "arrays", "backoff", "cache", "card", "classification", "compat",
    "confusions", "embeddings", "engines", "explain", "exports", "files", "filling", "first_run", "fitting",
    "folders", "heatmaps", "images", "maps", "networks", "pipeline", "plots", "preprocessing", "render", "runtime",
    "sources", "synsets", "targets", "training", "weights",
)  # fmt: skip

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    """Import a public name, or a submodule, when it is first asked for."""
    if name in _HOME_OF:
        value = getattr(importlib.import_module(_HOME_OF[name]), name)
    elif name in _SUBMODULES:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF, *_SUBMODULES})
