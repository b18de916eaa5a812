"""The command `map`: a collection laid out on a plane, as a page, a picture, or a file for later."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convnets_torch.cli.messages import one_line, say, warnings_as_lines
from convnets_torch.cli.picture_commands import AllowTruncated, BackgroundOption, DepthOption, MaxPixels
from convnets_torch.cli.running import Device, Precision, load_network

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL import Image

    from convnets_torch.card import Card
    from convnets_torch.embeddings.map_files import MapEntry
    from convnets_torch.networks import Network


def map_pictures(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="Weights (a .safetensors file, or a name in the cache); or a file that embed wrote."
        ),
    ],
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="IMAGE...", help="With weights: pictures, folders of them, quoted patterns."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Page to write: .html.", show_default=False)
    ] = None,
    png: Annotated[Path | None, typer.Option(help="Picture to write: .png, .jpg or .webp.", show_default=False)] = None,
    save: Annotated[Path | None, typer.Option(help="Map to write for --on: .safetensors.", show_default=False)] = None,
    on: Annotated[
        Path | None,
        typer.Option(help="Map that --save wrote, on which the pictures are placed.", show_default=False),
    ] = None,
    perplexity: Annotated[
        float | None,
        typer.Option(min=1, help="About how many neighbours each picture is kept near to.", show_default="30"),
    ] = None,
    title: Annotated[
        str | None, typer.Option(help="Stands above the page.", show_default="the page's own name")
    ] = None,
    device: Device = "cpu",
    precision: Precision = None,
    max_pixels: MaxPixels = None,
    allow_truncated: AllowTruncated = False,
    depth: DepthOption = None,
    background: BackgroundOption = None,
) -> None:
    """Lay a collection out by t-SNE so that pictures alike are near: a page to look through, or a picture."""
    if output is None and png is None and save is None:
        raise typer.BadParameter("name a page with -o, a picture with --png, or a map with --save (or more of these)")
    if on is not None and perplexity is not None:
        raise typer.BadParameter("--perplexity is for a new map; pictures --on an old one are placed by their own")
    if on is not None and save is not None:
        raise typer.BadParameter("--on leaves the old map as it is; to save a map, make one of all pictures")
    import numpy as np

    from convnets_torch import render
    from convnets_torch.cli.progress import rows_done
    from convnets_torch.embeddings.extraction import Embedder
    from convnets_torch.embeddings.map_files import check_map_output, check_same_kind, load_map, save_map
    from convnets_torch.embeddings.map_page import save_map_page
    from convnets_torch.embeddings.map_picture import draw_map
    from convnets_torch.embeddings.maps import PERPLEXITY, check_installed, make_map
    from convnets_torch.files import check_kept, check_page, check_writable
    from convnets_torch.folders import find_pictures
    from convnets_torch.levels import said_levels

    check_installed()
    reading: dict[str, Any] = {
        "max_pixels": max_pixels,
        "allow_truncated": allow_truncated,
        "depth": depth,
        "background": background,
    }
    if output is not None:
        check_page(output, "a map")
    if png is not None:
        if png.suffix.lower() not in render.FORMATS:
            raise typer.BadParameter(f"{png} has an unknown ending; a map is drawn as {', '.join(render.FORMATS)}")
        check_writable(png)
    if save is not None:
        check_map_output(save)
    old = None if on is None else load_map(on)
    outputs = [file for file in (output, png, save) if file is not None]
    for file in outputs:
        check_kept(file, [source, on or source])

    with warnings_as_lines():
        if images:
            network = load_network(source, device, precision, bulk=True)
            about = Embedder(network, logits=network.head is not None).about | said_levels(depth, background)
            if old is not None:
                check_same_kind(old, about, str(on))  # before the long work
            paths = [str(path) for name in images for path in find_pictures(name)]
            for file in outputs:
                check_kept(file, paths)
            found = _embedded(network, paths, precision == "exact", reading)
            found.about = about
        else:
            found = _from_file(source)
            if old is not None:
                check_same_kind(old, found.about, str(on))
        if not found.entries:
            reason = next(iter(found.failed.values()), "there are none")
            raise ValueError(f"none of {len(found.failed)} pictures could be used; the first: {reason}")
        start = time.perf_counter()
        with rows_done("steps of the map") as report:
            if old is None:
                made = make_map(found.vectors, perplexity=perplexity or PERPLEXITY, report=report)
                positions, entries, new = made.positions, found.entries, None
            else:
                placed = old.image_map.place(found.vectors, report=report)
                positions = np.concatenate([old.image_map.positions, placed])
                entries, new = old.entries + found.entries, np.arange(len(positions)) >= len(old.entries)
        took = time.perf_counter() - start
        if same := len(positions) - len(np.unique(positions, axis=0)):
            say(f"{same} pictures are the same as others, and are drawn as one with them")
        if save is not None:
            save_map(made, entries, save, found.about)
            say(f"{save}: a map of {len(entries)} pictures, made in {took:.0f} s")
        if output is not None or png is not None:
            small = _thumbnails(entries, reading)
        if png is not None:
            drawn = draw_map(positions, small, new=new)
            render.save_image(drawn.image, png)
            say(f"{png}: {drawn.shown.sum()} of {len(entries)} pictures; the others, which would cover one, are dots")
        if output is not None:
            words = title or output.stem
            save_map_page(positions, entries, small, output, title=words, new=new, failed=found.failed)
            say(f"{output}: {len(entries)} pictures, {output.stat().st_size / 1e6:.1f} MB")
    if found.failed:
        raise typer.Exit(1)


@dataclass
class _Found:
    """What is to be mapped."""

    vectors: NDArray[np.float32]
    entries: list[MapEntry]
    failed: dict[str, str]
    about: dict[str, str] = field(default_factory=dict)


def _embedded(network: Network, paths: list[str], exact: bool, reading: dict[str, Any]) -> _Found:
    """Vectors of pictures, and the words of their classes where the network has a head."""
    import numpy as np

    from convnets_torch.cli.progress import with_time_left
    from convnets_torch.embeddings.extraction import embed_each
    from convnets_torch.embeddings.map_files import MapEntry

    rows = embed_each(
        network,
        paths,
        logits=network.head is not None,
        exact=exact,
        **reading,
    )
    vectors, entries, failed = [], [], {}
    for path, row in zip(paths, with_time_left(rows, len(paths)), strict=True):
        for remark in row.remarks:
            say(remark)
        if row.vector is None:
            failed[path] = one_line(row.error) if row.error is not None else ""
            say(failed[path])
            continue
        vectors.append(row.vector.numpy())
        entries.append(MapEntry(path, *_best(network.card, row.logits)))
    return _Found(np.stack(vectors) if vectors else np.empty((0, 1), np.float32), entries, failed)


def _from_file(path: str) -> _Found:
    """What `embed` wrote; its pictures are needed for their thumbnails alone."""
    import torch

    from convnets_torch.card import Card
    from convnets_torch.embeddings.map_files import MapEntry
    from convnets_torch.embeddings.vector_reading import read_vectors

    found = read_vectors(path)
    try:
        card = Card.from_json(found.about["card"]) if found.about.get("card") else None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if card is not None and found.logits is not None and card.classes != found.logits.shape[1]:
        raise ValueError(f"{path} has {found.logits.shape[1]} logits a picture, and its card {card.classes} classes")
    logits = [None] * len(found.paths) if found.logits is None else torch.from_numpy(found.logits)
    entries = [MapEntry(name, *_best(card, row)) for name, row in zip(found.paths, logits, strict=True)]
    return _Found(found.vectors, entries, found.failed, found.about)


def _best(card: Card | None, logits: torch.Tensor | None) -> tuple[str, float | None]:
    """Words and probability of the most probable class, where they can be said."""
    from convnets_torch.classification import prediction, probabilities

    if logits is None or card is None or card.activation == "none":
        return "", None
    chances = probabilities(logits[None], card)[0]
    best = int(chances.argmax())
    return prediction(card, best, 0.0).words, float(chances[best])


def _thumbnails(entries: list[MapEntry], reading: dict[str, Any]) -> list[Image.Image | None]:
    from convnets_torch.cli.progress import with_time_left
    from convnets_torch.embeddings.map_thumbnails import thumbnail_side, thumbnails

    made = thumbnails(
        [entry.name for entry in entries],
        thumbnail_side(len(entries)),
        **reading,
    )
    images, errors = zip(*with_time_left(made, len(entries)), strict=True)
    if missing := [one_line(error) for error in errors if error is not None]:
        say(f"{len(missing)} of {len(entries)} pictures have no thumbnail; the first: {missing[0]}")
    return list(images)
