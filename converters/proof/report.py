"""The verdict of a proof for the card, and its report: every layer with its error, as JSON or as an HTML page."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from converters.proof.proof import TOLERANCE, ProofRow
from convnets_torch._version import __version__
from convnets_torch.card import LONGEST_LAYER, ROUNDING, Card, Proof
from convnets_torch.files import Writer

# As long as the longest proof: the header of the file is laid out before the proof is known.
PLACEHOLDER = Proof(
    layers=10**9, error=1.1e-111, worst="\U0010ffff" * LONGEST_LAYER, tolerance=TOLERANCE, network="0" * 64,
    converter=f"convnets-torch {__version__}", numpy=f"NumPy {np.__version__}",
)  # fmt: skip


def proof_of(rows: Sequence[ProofRow], digest: str) -> Proof:
    """Return the proof for the card, of rows that passed `check`.

    Args:
        rows: one for each layer, and last the output's.
        digest: as `network_digest`.
    """
    worst = max(rows, key=lambda row: row.error)
    error = max(ROUNDING, float(f"{worst.error:.1e}"))
    where = worst.layer[:LONGEST_LAYER] if error > ROUNDING else ""
    return replace(PLACEHOLDER, layers=len(rows) - 1, error=error, worst=where, network=digest)


def contents(card: Card, rows: Sequence[ProofRow], notes: Sequence[str], failure: str | None) -> dict[str, Any]:
    """Return a report as JSON values, the same for equal conversions but for rounding.

    Args:
        card: the network's card, with its source.
        rows: one for each layer, and last the output's.
        notes: on assumptions made by the conversion.
        failure: why the proof failed; None if it did not.
    """
    assert card.source is not None
    verdict = f"Not proven: {failure}." if card.proof is None else card.proof.verdict
    layers = [asdict(row) | {"error": row.error if math.isfinite(row.error) else None} for row in rows]
    source = {name: getattr(card.source, name) for name in ("file", "sha256", "framework", "backend")}
    return {
        "verdict": verdict, "proven": card.proof is not None, "network": card.network, "source": source,
        "changes": list(card.source.changes), "notes": list(notes), "tolerance": TOLERANCE,
        "converter": PLACEHOLDER.converter, "numpy": PLACEHOLDER.numpy, "layers": layers,
    }  # fmt: skip


def _write_json(path: Path, report: dict[str, Any]) -> None:
    path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _write_page(path: Path, report: dict[str, Any]) -> None:
    from convnets_torch.visualization.pages import save_page

    save_page(path, "proof.html", title=f"Proof of {report['source']['file']}", **report)


WRITER = Writer("the report of a proof", {".json": _write_json, ".html": _write_page})
