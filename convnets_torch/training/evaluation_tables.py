"""An evaluation as tables for other programs: each picture in CSV or Parquet, each class in CSV."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from convnets_torch import synsets
from convnets_torch.files import check_writable, replacing
from convnets_torch.sentences import cell
from convnets_torch.targets import class_name, class_wnid
from convnets_torch.training.answers import blocks, log_probabilities
from convnets_torch.training.class_metrics import METRICS, ClassMetrics
from convnets_torch.training.evaluation import Evaluation
from convnets_torch.training.severity import distances_of

TEXTS = ("path", "truth", "answer", "common_ancestor", "learnt_from", "error")
INTEGERS = ("truth_id", "answer_id", "rank", "height", "steps")


def check_predictions(path: Path) -> None:
    """Raise, before long work begins, when `save_predictions` cannot write to `path`.

    Raises:
        ValueError: another ending than .csv or .parquet.
        ImportError: a Parquet file is wanted, and pyarrow is missing.
        OSError: `path` cannot be written.
    """
    ending = path.suffix.lower()
    if ending not in (".csv", ".parquet"):
        raise ValueError(f"{path} has an unknown ending; predictions are written as .csv or .parquet")
    if ending == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise ImportError(
                f"a Parquet file needs pyarrow ({error}): pip install 'convnets-torch[parquet]'"
            ) from None
    check_writable(path)


def save_predictions(found: Evaluation, path: str | os.PathLike[str], *, probabilities: bool = True) -> None:
    """Write a row for each picture; the file appears whole, and memory does not grow with the pictures.

    Columns: `path`; `truth_id` and `truth`; `answer_id` and `answer`, the most probable class; `rank` of the truth,
    where 1 is right; `probability` of the answer, and `probability_of_truth`; for classes in the synset tree
    `common_ancestor`, its `height`, and the `steps` from the truth up to it; `learnt_from`, "train", "validation" or
    "no", where the card says it; `error`, of a picture that could not be read, whose other cells are empty. Then
    "probability 3 beagle" and the like, one for each class. Where outputs are no probabilities all these columns are
    called output instead.

    In CSV texts are as `sentences.cell` has them: formulas get an apostrophe. In Parquet they are as they are.

    Args:
        found: of `evaluate`.
        path: ends in .csv or .parquet.
        probabilities: False leaves out the columns of the classes.

    Raises:
        ValueError, ImportError, OSError: as `check_predictions`.
    """
    path = Path(path)
    check_predictions(path)
    header, rows = _header(found, probabilities), _parts(found, probabilities)
    if path.suffix.lower() == ".csv":
        _save_csv(path, header, (row for part in rows for row in zip(*map(_cells, part), strict=True)))
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {**dict.fromkeys(TEXTS, pa.string()), **dict.fromkeys(INTEGERS, pa.int32())}
    schema = pa.schema([(name, kinds.get(name, pa.float32())) for name in map(_utf8, header)])
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for part in rows:
            arrays = [pa.array(_exact(column), kind.type) for column, kind in zip(part, schema, strict=True)]
            writer.write_table(pa.table(arrays, schema=schema))


def save_classes(found: Evaluation, metrics: Sequence[ClassMetrics], path: str | os.PathLike[str]) -> None:
    """Write a row for each class that has pictures, in CSV: counts, the top-1 error and the metrics.

    Raises:
        OSError: it cannot be written.
    """
    header = ("class_id", "wnid", "class", "pictures", "wrong", "taken_for_it", "top1_error", *METRICS)
    rows = [
        [
            str(each.class_id),
            class_wnid(found.card, each.class_id) or "",
            cell(class_name(found.card, each.class_id)),
            *(str(number) for number in (each.count, each.errors[1].wrong, each.taken)),
            *_cells([each.errors[1].error, *(getattr(measured, name) for name in METRICS)]),
        ]
        for each, measured in zip(found.by_class, metrics, strict=True)
    ]
    _save_csv(Path(path), header, rows)


def _header(found: Evaluation, probabilities: bool) -> list[str]:
    word = "output" if found.card.activation == "none" else "probability"
    names = [f"{word} {number} {class_name(found.card, number)}" for number in range(found.card.classes)]
    return [
        "path", "truth_id", "truth", "answer_id", "answer", "rank", word, f"{word}_of_truth",
        "common_ancestor", "height", "steps", "learnt_from", "error", *(names if probabilities else ()),
    ]  # fmt: skip


def _parts(found: Evaluation, probabilities: bool) -> Iterator[list[Any]]:
    """Columns under `_header`, of some pictures after some more: lists of texts or None, and arrays of numbers."""
    card, tree, learnt = found.card, distances_of(found.card), found.learnt
    names = [class_name(card, number) for number in range(card.classes)]
    ancestors = [] if tree is None else [synsets.find(wnid).words[0] for wnid in tree.wnids]
    for numbers, values, truths in blocks(found.logits, found.labels):
        if card.activation != "none":
            values = np.exp(log_probabilities(values, card.activation))
        given, places, unknown = found.ranking.best[numbers, 0], np.arange(len(numbers)), [None] * len(numbers)
        yield [
            [str(found.paths[number]) for number in numbers],
            truths,
            [names[truth] for truth in truths],
            given,
            [names[answer] for answer in given],
            found.ranking.ranks[numbers] + 1,
            values[places, given],
            values[places, truths],
            unknown if tree is None else [ancestors[place] for place in tree.ancestors[truths, given]],
            *((unknown, unknown) if tree is None else (tree.heights[truths, given], tree.steps[truths, given])),
            unknown
            if learnt is None
            else ["train" if learnt.train[n] else "validation" if learnt.val[n] else "no" for n in numbers],
            unknown,
            *(values.T if probabilities else ()),
        ]
    if found.failed:
        paths, words = ([str(each) for each in column] for column in zip(*found.failed, strict=True))
        unknown = [None] * len(paths)
        width = len(_header(found, probabilities))
        yield [paths, *[unknown] * 11, words, *[unknown] * (width - 13)]


def _cells(column: Sequence[Any]) -> list[str]:
    """Texts for CSV."""
    values = column.tolist() if isinstance(column, np.ndarray) else column
    return ["" if value is None else cell(value) if isinstance(value, str) else f"{value:.7g}" for value in values]


def _save_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(map(cell, header))
        table.writerows(rows)


def _exact(column: Any) -> Any:
    """A column for Parquet."""
    return column if isinstance(column, np.ndarray) else [text if text is None else _utf8(text) for text in column]


def _utf8(text: str) -> str:
    """The text without what UTF-8 cannot hold: bytes of names that are none, as \\udcff."""
    return text.encode("utf-8", "backslashreplace").decode()
