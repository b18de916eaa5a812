"""Groups of files that are nearly the same: how alike they are, how large, and which of them to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from convnets_torch.embeddings.duplicates import least_cosine
from convnets_torch.embeddings.nearest import exact_scores
from convnets_torch.embeddings.picture_files import PictureFile, files_of
from convnets_torch.embeddings.vector_cache import Vectors

CHAIN = 2.0  # times as far from 1 as the threshold: so unlike may two files be in a group that is no chain
UNLIKE = 1e-3  # from 1, at least, that those of a chain are


@dataclass(frozen=True)
class Duplicate(PictureFile):
    """A file of a group.

    Attributes:
        cosine: of its vector and that of the group's first file.
    """

    cosine: float = 1.0


@dataclass(frozen=True)
class DuplicateGroup:
    """Files that are nearly the same, of which one may be kept.

    Attributes:
        files: the suggested keeper first, then those that are there, the largest first, then those that are gone.
        keeper: path of the file with the most pixels, and of these the one with the most bytes; never one that is gone
            or a link. None where there is no other.
        least_cosine: of the two files that are least alike.
        chain: these two are so unlike, more than twice as far from 1 as the threshold, that only other files, from one
            to the next, connect them. Look at all before one is deleted.
    """

    files: tuple[Duplicate, ...]
    keeper: str | None
    least_cosine: float
    chain: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; "group" are all paths, in the order of the files."""
        return {"group": [path for file in self.files for path in file.paths], **asdict(self)}


def group_of(held: Vectors, rows: Sequence[int], threshold: float) -> DuplicateGroup:
    """What there is to say of rows that `find_duplicates` has put into one group."""
    row_of = {held.path(row): row for row in rows}
    files = sorted(
        files_of(row_of), key=lambda file: (file.gone, file.link, -file.pixels, -(file.bytes or 0), file.paths[0])
    )
    keeper = None if files[0].gone or files[0].link else files[0].paths[0]
    own = held.vectors[[row_of[files[0].paths[0]]]].astype(np.float64)
    found = []
    for file in files:
        [cosine] = exact_scores(held.vectors[[row_of[file.paths[0]]]].astype(np.float64), own[0], "cosine")
        found.append(Duplicate(**vars(file), cosine=min(1.0, float(cosine))))
    least = least_cosine(held.vectors[np.unique(held.first[list(rows)])])
    return DuplicateGroup(tuple(found), keeper, least, 1 - least > max(UNLIKE, CHAIN * (1 - threshold)))
