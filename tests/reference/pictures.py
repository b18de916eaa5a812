"""Pictures that anyone can draw again: made from a seed, the same under every version of NumPy."""

import numpy as np

BLOCK = 20  # pixels; does not divide the strides of the networks, so that no two cells of a heatmap see the same
NOISE = 24  # at most so much brighter or darker than its block


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """Draw coarse random blocks of colour under fine noise.

    Args:
        seed: of `np.random.RandomState`, whose stream NumPy has promised never to change.
        height: in pixels.
        width: in pixels.

    Returns:
        (height, width, 3), uint8, RGB, 0 to 255.

    >>> picture(seed=1, height=2, width=3)[0].tolist()
    [[21, 220, 127], [18, 226, 116], [29, 212, 128]]
    """
    random = np.random.RandomState(seed)
    rows, columns = -(-height // BLOCK), -(-width // BLOCK)
    blocks = random.randint(0, 256, (rows, columns, 3), dtype=np.int64)
    enlarged = blocks.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)[:height, :width]
    noise = random.randint(-NOISE, NOISE + 1, (height, width, 3), dtype=np.int64)
    return np.clip(enlarged + noise, 0, 255).astype(np.uint8)
