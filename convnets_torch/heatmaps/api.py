"""Find where in a picture a class is, or a whole branch of the WordNet hierarchy."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from typing_extensions import Unpack

from convnets_torch.files import Output
from convnets_torch.heatmaps.maps import (
    Box,
    CellMap,
    ClassMap,
    Contrast,
    Heatmap,
    ProbabilityMap,
    Region,
    contrast_of,
    save_maps,
)
from convnets_torch.heatmaps.running import CellQuery, HeatmapKeywords, HeatmapOptions, MapRunner, OneMapKeywords
from convnets_torch.images.decoding import warn
from convnets_torch.images.sources import Sliceable
from convnets_torch.inference.classification import card_of
from convnets_torch.inference.pipeline import Mappable, mappable
from convnets_torch.options import checked, shows
from convnets_torch.wordnet.targets import Targets, allowed_classes, checked_target, checked_targets, winners_in_words

__all__ = [
    "Box", "CellMap", "ClassMap", "Contrast", "Heatmap", "ProbabilityMap", "Region", "class_map", "contrast",
    "heatmap", "heatmap_targets", "probability_map", "save_sheet",
]  # fmt: skip


@shows(HeatmapKeywords, HeatmapOptions)
def heatmap(network: Mappable, image: Sliceable, target: str | int, **options: Unpack[HeatmapKeywords]) -> Heatmap:
    """Find a target in a picture, in one pass over the whole picture, uncropped and at its own size.

    Args:
        network: in eval mode and with its card, as `load` returns it. Or an `engine(network, heatmap=True)`, which has
            one cell per `network.stride` pixels and runs pictures that fit into `max_memory` in one pass; for larger
            ones the network itself runs, in its own precision, with a warning.
        image: whatever `read_picture` takes: a file, a `PIL.Image`, an array (H, W, 3), a tensor (3, H, W); or an array
            that is sliced rather than loaded (`numpy.memmap`, zarr, HDF5), or the path of a large TIFF file, of which
            only some rows are in memory at a time (`open_source`).
        target: a class id, a wnid, a WordNet name or a word; a synset means every class below it, counted once. Or
            several of them joined by signs surrounded by blanks: "dog - hunting dog + wolf". For the maps of several
            targets see `heatmap_targets`.
        longest_side: first resize the picture to this many pixels on its longer side, keeping its aspect ratio: more
            pixels give more cells and find smaller objects.
        upscale: enlarge a picture that is smaller than the network's own size, as little as necessary.
        cell_stride: pixels between neighbouring cells of the (resized) picture, for a denser map than the network's
            own; one of `cell_strides(network)`.
        scales: sizes of the picture as factors, such as (0.5, 1, 2), each run separately, with their maps fused; "auto"
            takes octaves from the size at which one window covers the shorter side up to the picture's own.
        fuse: "mean" of the scales, or "max".
        max_memory: limit for activations, in bytes or as text such as "500MB"; a picture that needs more is processed
            in blocks of rows, with the same numbers. None for no limit.
        resume: a folder for finished rows; an interrupted run resumes from there. The folder is kept.
        progress: called with the number of finished rows of cells and the total.
        max_pixels, allow_truncated, depth, background: as in `read_picture`.

    Returns:
        The map, one cell per `network.stride` pixels of the (resized) picture.

    Raises:
        OSError: the picture is missing or broken.
        ValueError: the picture is smaller than the network's own size, a target is unknown, the network does not
            support this stride, the memory is too small, the folder belongs to another run, or the engine classifies.

    Warns:
        RuntimeRemark: the network runs instead of its engine because of the picture's size.
        PictureWarning: as `read_picture` does; or the map of a large picture file is low everywhere at the single
            scale.

    >>> from convnets_torch import load
    >>> cars = heatmap(load("alexnet.safetensors"), "street.jpg", "car")
    >>> cars.probabilities.shape, cars.window(2, 1)
    ((3, 6), Box(left=32.0, top=64.0, right=259.0, bottom=291.0))
    >>> cars.receptive_field(2, 1)
    Box(left=0.0, top=0.0, right=323.0, bottom=299.0)
    >>> cars.save("cars.png")
    """
    if isinstance(target, list | tuple):
        words = "heatmap of a list of targets is now heatmap_targets; lists go with the next release"
        warnings.warn(words, DeprecationWarning, stacklevel=2)
        return heatmap_targets(network, image, target, **options)
    return heatmap_targets(network, image, [target], **options)[0]


@shows(HeatmapKeywords, HeatmapOptions)
def heatmap_targets(
    network: Mappable, image: Sliceable, targets: Targets, **options: Unpack[HeatmapKeywords]
) -> list[Heatmap]:
    """Find several targets in a picture; the network runs once.

    Args:
        network, image, options: as for `heatmap`.
        targets: one or more, each as for `heatmap`.

    Returns:
        One map per target, in order.

    Raises:
        OSError, ValueError: as `heatmap`; or the list is empty.

    >>> from convnets_torch import load
    >>> cars, dogs = heatmap_targets(load("alexnet.safetensors"), "street.jpg", ["car", "dog"])
    >>> cars.target.label, dogs.values.shape
    ('car, auto, automobile, machine, motorcar', (3, 6))
    """
    settings = HeatmapOptions(**checked(options, HeatmapKeywords))
    network = mappable(network)
    runner = MapRunner(network, CellQuery(checked_targets(card_of(network), targets)), settings)
    maps = runner.heatmaps(runner.run(image))
    warn(runner.notes(image, maps))
    return maps


@shows(HeatmapKeywords, HeatmapOptions)
def contrast(
    network: Mappable,
    image: Sliceable,
    target: str | int,
    against: str | int,
    **options: Unpack[HeatmapKeywords],
) -> Contrast:
    """Map how much more probable one target is than another in every window: the difference between two maps.

    Args:
        network, image: as for `heatmap`.
        target: what raises a window's value, as for `heatmap`.
        against: what lowers it.
        options: as for `heatmap`.

    Raises:
        OSError, ValueError: as `heatmap`; or both targets are the same classes.

    >>> from convnets_torch import load
    >>> found = contrast(load("alexnet.safetensors"), "street.jpg", "dog", "cat")
    >>> bool((found.values == found.one.values - found.other.values).all())
    True
    """
    network = mappable(network)
    card = card_of(network)
    targets = [checked_target(card, each) for each in (target, against)]
    if targets[0].class_ids == targets[1].class_ids:
        raise ValueError(f"{target} and {against} are the same classes; contrast two targets")
    return contrast_of(*heatmap_targets(network, image, [target, against], **options))


@shows(OneMapKeywords, HeatmapOptions)
def class_map(
    network: Mappable, image: Sliceable, *, only: str | int | None = None, **options: Unpack[OneMapKeywords]
) -> ClassMap:
    """Map the most probable class of every cell of a picture.

    Args:
        network, image, options: as for `heatmap`.
        only: let only the classes of this target win cells; their probabilities do not change.

    Raises:
        OSError, ValueError: as `heatmap`.

    >>> from convnets_torch import load
    >>> found = class_map(load("alexnet.safetensors"), "street.jpg", only="dog")
    >>> found.class_ids.shape, set(found.names) <= set(range(151, 269))
    ((3, 6), True)
    """
    settings = HeatmapOptions(**checked(options, OneMapKeywords))
    network = mappable(network)
    card = card_of(network)
    [(shared, arrays)] = MapRunner(network, CellQuery(allowed=allowed_classes(card, only)), settings).run(image)
    class_ids = arrays["winner_ids"].astype(np.int64)
    return ClassMap(
        **shared,
        values=arrays["winners"],
        class_ids=class_ids,
        names=winners_in_words(card, class_ids.ravel().tolist()),
    )


@shows(OneMapKeywords, HeatmapOptions)
def probability_map(network: Mappable, image: Sliceable, **options: Unpack[OneMapKeywords]) -> ProbabilityMap:
    """Map the probabilities of all classes in every window; targets can be chosen later.

    All of them are kept in memory: 4 bytes per class and cell.

    Args:
        network, image, options: as for `heatmap`.

    Raises:
        OSError, ValueError: as `heatmap`.

    >>> from convnets_torch import load
    >>> found = probability_map(load("alexnet.safetensors"), "street.jpg")
    >>> found.probabilities.shape, found.heatmap("dog").values.shape
    ((1000, 3, 6), (3, 6))
    """
    settings = HeatmapOptions(**checked(options, OneMapKeywords))
    network = mappable(network)
    [(shared, arrays)] = MapRunner(network, CellQuery(everything=True), settings).run(image)
    return ProbabilityMap(**shared, values=arrays["best"][0], probabilities=arrays["all"])


def save_sheet(maps: Sequence[CellMap], path: Output, *, plain: bool = False, threshold: float = 0.5) -> None:
    """Write several maps of one picture to one file, atomically; a single map is written as by its `save`.

    Args:
        maps: as `heatmap_targets` returns them.
        path: `.png`, `.jpg` or `.webp`: a sheet of pictures side by side; `.html`: a page with a list to choose
            from; `.json`: the regions of each map; `.npz`: all data; `.npy`: an array (maps, rows, columns).
        plain: draw the maps alone, without the picture.
        threshold: for the regions in `.json` and `.html`.

    Raises:
        ValueError: the file ending is not supported, there is no map, or the maps have different pictures or cells.
        OSError: `path` cannot be written.

    >>> from convnets_torch import load
    >>> save_sheet(heatmap_targets(load("alexnet.safetensors"), "street.jpg", ["car", "dog"]), "sheet.png")
    """
    save_maps(maps, path, plain, threshold)
