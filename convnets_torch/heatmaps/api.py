"""Where in a picture a class is, or a whole branch of the WordNet tree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

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
from convnets_torch.heatmaps.running import (
    HeatmapKeywords,
    HeatmapOptions,
    OneMapKeywords,
    Wanted,
    faint_remark,
    heatmaps_of,
    run,
)
from convnets_torch.images.decoding import warn
from convnets_torch.images.sources import Sliceable
from convnets_torch.inference.classification import card_of
from convnets_torch.inference.pipeline import Mappable, mappable
from convnets_torch.options import checked, shows
from convnets_torch.wordnet.targets import Targets, allowed_classes, checked_target, checked_targets, winners_in_words

__all__ = [
    "Box", "CellMap", "ClassMap", "Contrast", "Heatmap", "ProbabilityMap", "Region", "class_map", "contrast",
    "heatmap", "probability_map", "save_sheet",
]  # fmt: skip


@overload
def heatmap(network: Mappable, image: Sliceable, target: str | int, **options: Unpack[HeatmapKeywords]) -> Heatmap: ...


@overload
def heatmap(
    network: Mappable, image: Sliceable, target: Targets, **options: Unpack[HeatmapKeywords]
) -> list[Heatmap]: ...


@shows(HeatmapKeywords, HeatmapOptions)
def heatmap(
    network: Mappable, image: Sliceable, target: str | int | Targets, **options: Unpack[HeatmapKeywords]
) -> Heatmap | list[Heatmap]:
    """Find a target in a picture: one pass over the whole picture, uncropped and at its own size.

    Args:
        network: in eval mode, with its card, as `load` gives it. Or an `engine(network, heatmap=True)`, which gives one
            cell for every `network.stride` pixels, and of pictures that fit into `max_memory` in one pass: over larger
            ones the network itself goes, in its own precision, and that is said.
        image: whatever `read_picture` takes: a file, a `PIL.Image`, an array (H, W, 3), a tensor (3, H, W); or an array
            that is sliced rather than loaded (`numpy.memmap`, zarr, HDF5), or a path of a large TIFF file, of which
            only some rows are in memory at a time (`open_source`).
        target: a class id, a wnid, a WordNet name or a word; a synset means every class below it, counted once. Or
            several of them with signs between blanks: "dog - hunting dog + wolf". A list of targets gives a list
            of maps; the network still runs once.
        longest_side: resize the picture to so many pixels first, keeping its aspect: larger gives more cells,
            and finds smaller things.
        upscale: enlarge a picture that is smaller than the network's own size, just as far as is needed.
        cell_stride: pixels between neighbouring cells of the (resized) picture, for a denser map than the network's
            own; one of `cell_strides(network)`.
        scales: sizes of the picture as factors, such as (0.5, 1, 2), each run by itself, and their maps fused; "auto"
            takes octaves from the size at which one window covers the shorter side up to the picture's own.
        fuse: "mean" of the scales, or "max".
        max_memory: bytes that activations may take, or words such as "500MB"; a picture that needs more goes through
            in strips, with the same numbers. None for no bound.
        resume: a folder for finished rows; a run that was interrupted goes on from there. The folder stays.
        progress: called with the rows of cells that are done and how many there are.
        max_pixels, allow_truncated, depth, background: as in `read_picture`.

    Returns:
        Its map, one cell for every `network.stride` pixels of the (resized) picture; for a list, a map for each.

    Raises:
        OSError: the picture is missing or broken.
        ValueError: the picture is smaller than the network's own size, a target is not known, the network cannot give
            this stride, the memory is too little, the folder belongs to another run, or the engine classifies.

    Warns:
        RuntimeRemark: the network runs instead of its engine, for the size of the picture.
        PictureWarning: as `read_picture` does; or the map of a large picture's file is faint at the one scale.

    >>> from convnets_torch import load
    >>> cars = heatmap(load("alexnet.safetensors"), "street.jpg", "car")
    >>> cars.probabilities.shape, cars.window(2, 1)
    ((3, 6), Box(left=32.0, top=64.0, right=259.0, bottom=291.0))
    >>> cars.receptive_field(2, 1)
    Box(left=0.0, top=0.0, right=323.0, bottom=299.0)
    >>> cars.save("cars.png")
    """
    settings = HeatmapOptions(**checked(options, HeatmapKeywords))
    network = mappable(network)
    targets = checked_targets(card_of(network), target)
    maps = heatmaps_of(run(network, image, Wanted(targets), settings), targets, settings.fuse)
    warn(faint_remark(network, image, maps, settings))
    return maps if isinstance(target, list | tuple) else maps[0]


@shows(HeatmapKeywords, HeatmapOptions)
def contrast(
    network: Mappable,
    image: Sliceable,
    target: str | int,
    against: str | int,
    **options: Unpack[HeatmapKeywords],
) -> Contrast:
    """How much more probable one target is than another in every window: the difference of two maps.

    Args:
        network, image: as for `heatmap`.
        target: what counts for a window, as for `heatmap`.
        against: what counts against it.
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
    return contrast_of(*heatmap(network, image, [target, against], **options))


@shows(OneMapKeywords, HeatmapOptions)
def class_map(
    network: Mappable, image: Sliceable, *, only: str | int | None = None, **options: Unpack[OneMapKeywords]
) -> ClassMap:
    """What is where in a picture: the most probable class of every cell.

    Args:
        network, image, options: as for `heatmap`.
        only: let only the classes of this target win cells; their probabilities stay as they are.

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
    [(shared, kept)] = run(network, image, Wanted(allowed=allowed_classes(card, only)), settings)
    class_ids = kept["winner_ids"].astype(np.int64)
    return ClassMap(
        **shared, values=kept["winners"], class_ids=class_ids, names=winners_in_words(card, class_ids.ravel().tolist())
    )


@shows(OneMapKeywords, HeatmapOptions)
def probability_map(network: Mappable, image: Sliceable, **options: Unpack[OneMapKeywords]) -> ProbabilityMap:
    """The probabilities of all classes in every window; targets may be asked for later.

    All of them are in memory: 4 bytes for each class and cell.

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
    [(shared, kept)] = run(network, image, Wanted(everything=True), settings)
    return ProbabilityMap(**shared, values=kept["best"][0], probabilities=kept["all"])


def save_sheet(maps: Sequence[CellMap], path: Output, *, plain: bool = False, threshold: float = 0.5) -> None:
    """Write several maps of one picture into one file, atomically; a single one as its `save` does.

    Args:
        maps: as `heatmap` gives them for a list of targets.
        path: `.png`, `.jpg` or `.webp`: a sheet of pictures side by side; `.html`: one page with a list to choose
            from; `.json`: the regions of each; `.npz`: all numbers; `.npy`: an array (maps, rows, columns).
        plain: the maps alone in colours, without the picture.
        threshold: of the regions in `.json` and `.html`.

    Raises:
        ValueError: another file ending, no map, or maps of other pictures.
        OSError: `path` cannot be written.

    >>> from convnets_torch import load
    >>> save_sheet(heatmap(load("alexnet.safetensors"), "street.jpg", ["car", "dog"]), "sheet.png")
    """
    save_maps(maps, path, plain, threshold)
