"""Write self-contained HTML pages, among them the interactive page of a picture and its maps."""

from __future__ import annotations

import functools
import json
import os
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnets_torch.files import replacing
from convnets_torch.images.preprocessing import Pixels
from convnets_torch.options import renamed
from convnets_torch.text import printable
from convnets_torch.visualization.overlays import DIVERGING, LEAST_TOP, STRENGTH, palette

if TYPE_CHECKING:
    from jinja2 import Environment

FEW_COLORS = 256  # pictures with at most this many colours are drawings; PNG stores them losslessly
JPEG_QUALITY = 90
LONGEST_JPEG = 65_500  # pixels; the format's limit per side
STEPS = 65_535  # probabilities of the best classes are stored in 16 bits


@dataclass(frozen=True, eq=False)
class MapLayer:
    """One map.

    Attributes:
        words: name of the map, such as "cat, true cat".
        values: (rows, columns) float32, 0 to 1, or -1 to 1 if signed.
        signed: whether the map contrasts two targets, with a colour scale in both directions from 0.
        threshold: 0 to 1, the slider's initial position; regions are the cells above it.
    """

    words: str
    values: NDArray[np.float32]
    signed: bool = False
    threshold: float = 0.5


@dataclass(frozen=True, eq=False)
class Cells:
    """Positions of the cells, in pixels of the original picture with ends excluded, and their best classes.

    Attributes:
        window_rows, field_rows: (rows, 2), top and bottom of the windows and of the receptive fields.
        window_columns, field_columns: (columns, 2), left and right of the same.
        top_ids: (rows, columns, k) integers, the k most probable classes of each cell, best first.
        top_probabilities: (rows, columns, k) float32, 0 to 1.
        names: class id -> name, for every class in `top_ids`.
    """

    window_rows: NDArray[Any]
    window_columns: NDArray[Any]
    field_rows: NDArray[Any]
    field_columns: NDArray[Any]
    top_ids: NDArray[Any]
    top_probabilities: NDArray[np.float32]
    names: dict[int, str]


@renamed(picture="image")
def write_page(
    path: str | os.PathLike[str],
    image: Pixels,
    size: tuple[int, int],
    layers: Sequence[MapLayer],
    cells: Cells,
    *,
    title: str,
) -> None:
    """Write an interactive HTML page of a picture and its maps, atomically.

    The page shows the picture under the map, in the colours of a saved overlay. For the cell whose window centre is
    nearest to the pointer it shows the window, the receptive field, the value and the best classes. It lists the
    regions (connected cells, including at corners) above a threshold that a slider sets. The file is self-contained and
    loads nothing from the network. All names are escaped.

    The picture is embedded as JPEG of quality 90, or as PNG if it has at most 256 colours. Values are stored as
    float32, the probabilities of the best classes in 16 bits, to 0.00001. A cell takes about 5.3 bytes per layer and
    5.3 for each of its best classes.

    Args:
        path: the file, such as `cat.html`.
        image: (h, w, 3) uint8, RGB: the original picture or a reduced copy, at most 65,500 pixels per side.
        size: (height, width) of the original picture in pixels, to which all boxes refer.
        layers: one map or more; with several the page has a list to choose from.
        cells: positions and best classes of the cells, the same for all layers.
        title: heading of the page.

    Raises:
        ValueError: the arrays do not match, values are out of range, or a class has no name.

    >>> windows = np.array([[0, 224], [32, 256]])
    >>> cells = Cells(
    ...     window_rows=windows, window_columns=windows,
    ...     field_rows=windows + [-90, 90], field_columns=windows + [-90, 90],
    ...     top_ids=np.full((2, 2, 1), 281), top_probabilities=np.ones((2, 2, 1), np.float32),
    ...     names={281: "tabby, tabby cat"},
    ... )
    >>> picture = np.zeros((256, 256, 3), np.uint8)
    >>> layer = MapLayer("cat", np.eye(2, dtype=np.float32))
    >>> write_page("cat.html", picture, (256, 256), [layer], cells, title="A cat")
    """
    _check_image(image, size)
    _check_cells(cells)
    if not layers:
        raise ValueError("a page needs a map; give one layer or more")
    for layer in layers:
        _check_layer(layer, cells.top_ids.shape[:2])
    save_page(
        path,
        "page.html",
        "page.js",
        title=title,
        picture=data_uri(drawn := Image.fromarray(image), "PNG" if drawn.getcolors(FEW_COLORS) else "JPEG"),
        data=as_json(_numbers(size, layers, cells)),
    )


def _check_image(image: Pixels, size: tuple[int, int]) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ValueError(f"the picture is {image.dtype} {image.shape}; give uint8 (height, width, 3)")
    if max(image.shape) > LONGEST_JPEG:
        raise ValueError(
            f"the picture is {image.shape[0]}x{image.shape[1]} pixels, but a page takes at most {LONGEST_JPEG} per"
            " side; give a reduced copy"
        )
    if min(size) < 1:
        raise ValueError(f"the size of the original picture is {size}; give (height, width) in pixels")


def _check_cells(cells: Cells) -> None:
    shape = cells.top_ids.shape
    if len(shape) != 3 or 0 in shape or cells.top_probabilities.shape != shape:
        raise ValueError(
            f"the best classes are {shape} and their probabilities {cells.top_probabilities.shape};"
            " both are (rows, columns, k)"
        )
    for count, axis in zip(shape, ("rows", "columns"), strict=False):
        for kind in ("window", "field"):
            boxes = getattr(cells, f"{kind}_{axis}")
            if boxes.shape != (count, 2):
                raise ValueError(f"{kind}_{axis} is {boxes.shape}, and there are {count} {axis}; give ({count}, 2)")
            if not (np.isfinite(boxes).all() and (boxes[:, 0] < boxes[:, 1]).all()):
                raise ValueError(f"{kind}_{axis} has a box whose end is not after its start")
        windows = getattr(cells, f"window_{axis}")
        if (np.diff(windows, axis=0) < 0).any() or (np.diff(windows.sum(axis=1)) <= 0).any():
            raise ValueError(f"window_{axis} is not in ascending order")
    _check_range(cells.top_probabilities, 0, "the probabilities of the best classes")
    if missing := sorted(set(np.unique(cells.top_ids).tolist()) - set(cells.names)):
        raise ValueError(f"class {missing[0]} is among the best classes but has no name; name all of top_ids")


def _check_layer(layer: MapLayer, shape: tuple[int, ...]) -> None:
    words = printable(layer.words)
    if layer.values.shape != shape:
        raise ValueError(f"the map of {words} is {layer.values.shape}, and the cells are {shape}; they must be equal")
    _check_range(layer.values, -1 if layer.signed else 0, f"the map of {words}")
    if not 0 <= layer.threshold <= 1:
        raise ValueError(f"the threshold of {words} is {layer.threshold}; give one from 0 to 1")


def _check_range(values: NDArray[Any], least: int, what: str) -> None:
    if not (values.min() >= least and values.max() <= 1):  # also fails for NaN
        raise ValueError(f"{what} has values from {values.min()} to {values.max()}; give values from {least} to 1")


def _numbers(size: tuple[int, int], layers: Sequence[MapLayer], cells: Cells) -> dict[str, Any]:
    """Data for the page's script."""
    class_ids, places = np.unique(cells.top_ids, return_inverse=True)
    id_type = np.dtype("<u2" if len(class_ids) <= 1 << 16 else "<u4")
    return {
        "height": int(size[0]),
        "width": int(size[1]),
        "rows": {"windows": cells.window_rows.tolist(), "fields": cells.field_rows.tolist()},
        "columns": {"windows": cells.window_columns.tolist(), "fields": cells.field_columns.tolist()},
        "names": [printable(cells.names[class_id]) for class_id in class_ids.tolist()],
        "top": cells.top_ids.shape[2],
        "id_bytes": id_type.itemsize,
        "top_ids": as_base64(places.astype(id_type)),
        "top_probabilities": as_base64(np.rint(cells.top_probabilities * STEPS).astype("<u2")),
        "layers": [_layer_numbers(layer) for layer in layers],
    }


def _layer_numbers(layer: MapLayer) -> dict[str, Any]:
    colors, strength = palette(), STRENGTH
    if layer.signed:
        colors, strength = palette(DIVERGING, 511), np.concatenate([STRENGTH[:0:-1], STRENGTH])
    opacity = np.rint(255 * strength).astype(np.uint8)
    return {
        "words": printable(layer.words),
        "values": as_base64(layer.values.astype("<f4")),
        "signed": bool(layer.signed),
        "threshold": float(layer.threshold),
        "top": max(float(np.abs(layer.values).max()), LEAST_TOP),  # end of the colour scale
        "ramp": as_base64(np.column_stack([colors, opacity])),
    }


def data_uri(image: Image.Image, form: Literal["PNG", "JPEG"]) -> str:
    """Encode a picture as a data URI; JPEG with quality 90."""
    file = BytesIO()
    image.save(file, form, optimize=True, **({"quality": JPEG_QUALITY} if form == "JPEG" else {}))
    return as_uri(file.getvalue(), form)


def as_uri(content: bytes, form: Literal["PNG", "JPEG"]) -> str:
    """Encode the content of an image file as a data URI."""
    from markupsafe import Markup

    return Markup(f"data:image/{form.lower()};base64,{b64encode(content).decode()}")


def as_json(numbers: dict[str, Any]) -> str:
    """Serialise to JSON that is safe inside a script element: <, > and & are escaped."""
    from markupsafe import Markup

    text = json.dumps(numbers, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def as_base64(array: NDArray[Any]) -> str:
    """Encode the bytes of an array, in row-major order."""
    return b64encode(array.tobytes()).decode()


def save_page(path: str | os.PathLike[str], template: str, *scripts: str, **values: Any) -> None:
    """Render a self-contained page from files in `templates` and write it atomically.

    Its content security policy allows only embedded pictures, the shared style and these scripts. Text is escaped.

    Args:
        path, template, scripts: the page, and the files that it is made of; scripts are concatenated.
        values: template variables, including `title`.
    """
    from markupsafe import Markup

    style, script = _part("style.css"), "".join(map(_part, scripts))
    policy = f"default-src 'none'; img-src data:; style-src '{_policy_hash(style)}'"
    policy += "; base-uri 'none'; form-action 'none'"  # not covered by default-src
    if script:
        policy += f"; script-src '{_policy_hash(script)}'"
    page = _environment().get_template(template)
    text = page.render(policy=Markup(policy), style=Markup(style), script=Markup(script), **values)
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode())


@functools.cache
def _environment() -> Environment:
    import jinja2

    found = jinja2.Environment(
        loader=jinja2.FunctionLoader(_part),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["percent"] = lambda value, places=2: f"{value:.{places}%}"
    return found


def _shown(value: object) -> object:
    """Make text printable, except markup."""
    return printable(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _policy_hash(text: str) -> str:
    """The hash that a content security policy lists for an inline script or style."""
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"


def _part(name: str) -> str:
    """Read a template, style or script."""
    return (files("convnets_torch.visualization") / "templates" / name).read_text(encoding="utf-8")
