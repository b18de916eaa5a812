"""An index without files, of made vectors, and the rows of any index."""

from __future__ import annotations

import hashlib

import numpy as np

from convnets_torch.card import Card
from convnets_torch.embeddings.index_table import About, PictureTable
from convnets_torch.images.preprocessing import preset


def filled(address, count, width=32, seed=0):
    """An index of made vectors in clusters, without files."""
    card = Card("vgg16", {"classes": 10}, preset("vgg16"), tuple("abcdefghij"))
    table = PictureTable.create(str(address), About("kind", card.to_json(), None, "avg", "", width))
    if count:
        add(table, count, seed)
    return table


def add(table, count, seed):
    chance = np.random.default_rng(seed)
    centres = chance.standard_normal((40, table.about.width))
    vectors = centres[chance.integers(0, 40, count)] + 0.3 * chance.standard_normal((count, table.about.width))
    table.put(
        [
            {
                "path": f"/made/{seed}-{number}.jpg",
                "sha256": hashlib.sha256(f"{seed} {number}".encode()).hexdigest(),
                "size": 1,
                "modified": 1,
                "vector": vector.astype(np.float32),
                "class_id": number % 10,
                "probability": 0.5,
                "thumbnail": None,
                "error": None,
                "vanished": False,
            }
            for number, vector in enumerate(vectors)
        ]
    )


def rows_of(address) -> dict[str, dict]:
    """Path -> row, read from the table itself; none twice."""
    table = PictureTable.open(str(address))
    rows = [row for some in table.read(table.table.schema.names) for row in some.to_pylist()]
    found = {row["path"]: row for row in rows}
    assert len(found) == len(rows)
    return found
