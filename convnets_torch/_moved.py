"""Former names of version 0.1; they work for one more release, with a `DeprecationWarning`."""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NAMES = {  # module -> its names that were importable from the top of the package; old=new if the name changed too
    "converters.conversion": "Report",
    "convnets_torch.card": "Source read_card",
    "convnets_torch.embeddings.duplicates": "Leak find_duplicates find_leaks",
    "convnets_torch.embeddings.extraction": "Embedded Embedder pooled",
    "convnets_torch.embeddings.files": "ReadVectors SavedVectors read_vectors save_vectors",
    "convnets_torch.embeddings.image_map": "ImageMap MapEntry MapWarning SavedMap load_map save_map",
    "convnets_torch.embeddings.index": "Indexed",
    "convnets_torch.embeddings.neighbours": "nearest",
    "convnets_torch.embeddings.probe": "LabelledVectors LinearProbe Pairs Probed count_pairs "
    "draw_confusion draw_curve draw_pairs fit_probe with_probe",
    "convnets_torch.embeddings.search": "Match Matches recall",
    "convnets_torch.evaluation.calibration": "Calibration Recalibration Temperature "
    "calibrate fit_temperature recalibrate with_temperature",
    "convnets_torch.evaluation.evaluate": "Evaluation",
    "convnets_torch.evaluation.labels": "GroundTruth",
    "convnets_torch.evaluation.metrics": "Mistakes find_mistakes",
    "convnets_torch.evaluation.report": "Judged=Metrics judge=compute_metrics save_predictions",
    "convnets_torch.explain.activations": "Layer layer_names",
    "convnets_torch.explain.channels": "ChannelGrid activation_grids save_grids",
    "convnets_torch.explain.faithfulness": "Faithfulness measure_faithfulness",
    "convnets_torch.explain.filters": "FilterPatterns FirstKernels class_patterns first_kernels",
    "convnets_torch.explain.gradcam": "CamWarning Explained Score cams",
    "convnets_torch.explain.gradcam_maps": "GradCam save_cams",
    "convnets_torch.explain.page": "Explanation",
    "convnets_torch.explain.patches": "Patch TopPatches top_patches",
    "convnets_torch.explain.statistics": "ChannelStatistics FolderStatistics ZeroShares "
    "channel_statistics save_statistics zero_shares",
    "convnets_torch.heatmaps.api": "Box CellMap ClassMap Contrast Heatmap ProbabilityMap Region save_sheet",
    "convnets_torch.heatmaps.many": "Mapped",
    "convnets_torch.images.decoding": "PictureWarning",
    "convnets_torch.images.labelled": "find_classes",
    "convnets_torch.images.sources": "open_source",
    "convnets_torch.inference.batching": "MemoryWarning",
    "convnets_torch.inference.classification": "Classified Prediction",
    "convnets_torch.inference.engines": "Engine",
    "convnets_torch.inference.export": "Exported",
    "convnets_torch.inference.pipeline": "Predicted",
    "convnets_torch.networks": "EfficientNetLite InceptionV3 NETWORKS ResNet VGG",
    "convnets_torch.training.augmentation": "Augmentation",
    "convnets_torch.training.datasets": "Dataset",
    "convnets_torch.training.finetuning": "Finetuned LeakError Watch=Callbacks",
    "convnets_torch.training.running": "Reports=Callbacks TrainingStopped",
    "convnets_torch.weights": "list_networks with_last_layer",
    "convnets_torch.wordnet.hierarchy": "Answer Severity back_off measure_severity",
    "convnets_torch.wordnet.targets": "Target",
}
MODULES = {  # former module -> the module that has most of its contents
    "adoption": "convnets_torch.fcn.densify",
    "ahead": "convnets_torch.inference.pipeline",
    "algebra": "convnets_torch.wordnet.expressions",
    "allocation": "convnets_torch.inference.allocation",
    "apart": "convnets_torch.inference.child_process",
    "arrays": "convnets_torch.images.decoding",
    "backoff": "convnets_torch.wordnet.hierarchy",
    "cache": "convnets_torch.files",
    "classification": "convnets_torch.inference.classification",
    "confusions": "convnets_torch.visualization.charts",
    "decoders": "convnets_torch.inference.torchcodec",
    "device_pixels": "convnets_torch.images.resizing",
    "engines": "convnets_torch.inference.engines",
    "exports": "convnets_torch.inference.export",
    "filling": "convnets_torch.safetensors_io",
    "first_run": "convnets_torch.cli.demo",
    "fitting": "convnets_torch.inference.batching",
    "folders": "convnets_torch.images.finding",
    "headers": "convnets_torch.images.headers",
    "inputs": "convnets_torch.inference.pipeline",
    "jpeg": "convnets_torch.images.decoding",
    "labelled": "convnets_torch.images.labelled",
    "last_layers": "convnets_torch.weights",
    "learnt_pictures": "convnets_torch.card",
    "letters": "convnets_torch.visualization.letters",
    "levels": "convnets_torch.images.levels",
    "maps": "convnets_torch.heatmaps",
    "pipeline": "convnets_torch.inference.pipeline",
    "plots": "convnets_torch.visualization.charts",
    "preprocessing": "convnets_torch.images.preprocessing",
    "profiles": "convnets_torch.images.levels",
    "render": "convnets_torch.visualization.overlays",
    "runtime": "convnets_torch.inference.prepare",
    "sentences": "convnets_torch.text",
    "sources": "convnets_torch.images.sources",
    "strict_json": "convnets_torch.files",
    "strips": "convnets_torch.images.rows",
    "synsets": "convnets_torch.wordnet.synsets",
    "targets": "convnets_torch.wordnet.targets",
    "tiff": "convnets_torch.images.tiff",
}
HOMES = {  # former name -> module, present name
    name.partition("=")[0]: (home, name.rpartition("=")[2]) for home, names in NAMES.items() for name in names.split()
}


def former(name: str) -> Any:
    """Look up the former `convnets_torch.name`; raises AttributeError if there was none."""
    if name in HOMES:
        home, present = HOMES[name]
        _warn(f"convnets_torch.{name} is now {home}.{present}", 4)
        return getattr(import_module(home), present)
    if name in MODULES:
        return import_module(f"convnets_torch.{name}")
    raise AttributeError(f"module 'convnets_torch' has no attribute {name!r}")


def spec_of(fullname: str) -> ModuleSpec | None:
    """Import spec of the former module `convnets_torch.name`; None if there was none."""
    return ModuleSpec(fullname, _Loader()) if fullname.partition(".")[2] in MODULES else None


class _Loader(Loader):
    """Imports the present module in place of the former one."""

    def exec_module(self, module: ModuleType) -> None:
        place = MODULES[module.__name__.partition(".")[2]]
        _warn(f"{module.__name__} is now {place}", 3)
        sys.modules[module.__name__] = import_module(place)


def _warn(what: str, level: int) -> None:
    warnings.warn(f"{what}; the old name goes with the next release", DeprecationWarning, stacklevel=level)
