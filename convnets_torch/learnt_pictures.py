"""Which pictures a network was trained on: short digests of their contents, kept in its card.

A digest is the first 6 bytes of the sha256 of a file's content. The card keeps those of up to 32,768 training and 8,192
validation pictures, 8 letters each. Of more pictures it keeps the smallest digests, a uniform sample: whatever lies in
their range can be looked up exactly, so the share of known pictures can still be estimated. A picture that was saved
anew has another content and is not recognised.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnets_torch.card import DIGESTS, Card

BYTES = 6  # of a digest: that any of a million other pictures shares one of 32,768 has a chance of 1 in 8,000
MOST = {"train": 1 << 15, "val": 1 << 13}  # digests that are kept of each side


@dataclass(frozen=True, eq=False)
class Learnt:
    """Which of N pictures a network was trained on, or had its best epoch chosen by.

    Attributes:
        train, val: (N,) bool, the pictures that are known to be among those.
        train_checked, val_checked: how many of the N could be looked up: all, unless the card keeps a sample.
    """

    train: NDArray[np.bool_]
    val: NDArray[np.bool_]
    train_checked: int
    val_checked: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "train": int(self.train.sum()),
            "train_checked": self.train_checked,
            "validation": int(self.val.sum()),
            "validation_checked": self.val_checked,
        }

    @property
    def remarks(self) -> tuple[str, ...]:
        """Sentences on pictures that flatter the network; none where it knows none of them."""
        found = []
        if self.train.any():
            pictures = _of(self.train, self.train_checked)
            found.append(
                f"the network was trained on {pictures}, so its errors are lower than on new ones; evaluate it on"
                " pictures that it has never seen"
            )
        if self.val.any():
            pictures = _of(self.val, self.val_checked)
            found.append(
                f"the network's best epoch was chosen by {pictures}, so its errors may be a little too low; keep a"
                " third set of pictures to evaluate on"
            )
        return tuple(found)


def with_learnt(card: Card, train: Iterable[str], val: Iterable[str] = ()) -> Card:
    """The card with the digests of further pictures.

    Args:
        card: those that it has stay: what a network learnt from before, its features know still.
        train: sha256 of the contents of pictures that a network was trained on, in hexadecimal.
        val: of those that decided when its training was best.
    """
    kept = {}
    for name, new in (("train", train), ("val", val)):
        cut = np.frombuffer(b"".join(bytes.fromhex(each)[:BYTES] for each in new), np.uint8).reshape(-1, BYTES)
        every = np.unique(np.concatenate([_numbers(cut), _unpacked(card, name)]))[: MOST[name]]
        packed = every.astype(">u8").view(np.uint8).reshape(-1, 8)[:, 8 - BYTES :]
        kept[name] = base64.b64encode(packed.tobytes()).decode()
    return replace(card, unknown={**card.unknown, DIGESTS: kept})


def find_learnt(card: Card, digests: Sequence[str | None]) -> Learnt:
    """Look pictures up among those that a network was trained on.

    Args:
        card: of the network, with digests; see `keeps_digests`.
        digests: sha256 of the content of each of N pictures, in hexadecimal; None of those that cannot be read.

    Raises:
        ValueError: the card's digests are damaged.

    >>> from hashlib import sha256
    >>> from convnets_torch.card import read_card
    >>> one, other = (sha256(name).hexdigest() for name in (b"one", b"other"))
    >>> find_learnt(with_learnt(read_card("alexnet.safetensors"), [one]), [other, one]).train.tolist()
    [False, True]
    """
    readable = np.array([each is not None for each in digests], bool)
    data = b"".join(bytes.fromhex(each or "0" * 2 * BYTES)[:BYTES] for each in digests)
    numbers = _numbers(np.frombuffer(data, np.uint8).reshape(-1, BYTES))
    found: dict[str, tuple[NDArray[np.bool_], int]] = {}
    for name, most in MOST.items():
        kept = _unpacked(card, name)
        within = readable if len(kept) < most else readable & (numbers <= kept.max())
        found[name] = readable & np.isin(numbers, kept), int(within.sum())
    (train, train_checked), (val, val_checked) = found["train"], found["val"]
    return Learnt(train, val & ~train, train_checked, val_checked)


def keeps_digests(card: Card) -> bool:
    """Whether the card says which pictures its network was trained on."""
    return DIGESTS in card.unknown


def _of(known: NDArray[np.bool_], checked: int) -> str:
    some, every = int(known.sum()), len(known)
    words = f"{some} of these {every} pictures" if every > 1 else "this picture"
    if checked < every:
        words = f"{some} of the {checked} pictures here that its card's sample covers, so on some {some / checked:.0%}"
    return words


def _numbers(rows: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """(N, BYTES), the highest byte first, as numbers."""
    wide = np.zeros((len(rows), 8), np.uint8)
    wide[:, 8 - BYTES :] = rows
    return wide.view(">u8").reshape(-1).astype(np.uint64)


def _unpacked(card: Card, name: str) -> NDArray[np.uint64]:
    if not keeps_digests(card):
        return np.zeros(0, np.uint64)
    try:
        data = base64.b64decode(card.unknown[DIGESTS][name], validate=True)
        return _numbers(np.frombuffer(data, np.uint8).reshape(-1, BYTES))
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(
            "the card's digests of training pictures are damaged, so nobody can say whether the network knows these"
            " pictures; train it again, or evaluate it with care"
        ) from None
