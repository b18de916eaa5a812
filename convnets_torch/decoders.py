"""torchcodec's decoder of JPEG files, an optional one."""

from __future__ import annotations

from collections.abc import Callable

import torch

from convnets_torch.jpeg import without_exif
from convnets_torch.preprocessing import Pixels


def jpeg_decoder() -> Callable[[bytes], Pixels | None]:
    """torchcodec's decoder of JPEG files, as `Reading` wants it.

    Raises:
        ImportError: torchcodec is not installed, or too old.
    """
    try:
        from torchcodec.decoders import decode_jpeg
    except (ImportError, RuntimeError) as error:  # older ones want FFmpeg and raise RuntimeError
        raise ImportError(
            f"the decoder torchcodec cannot be used ({type(error).__name__}); its version 0.16 or newer is wanted:"
            " pip install 'convnets-torch[torchcodec]'"
        ) from None

    def decode(data: bytes) -> Pixels | None:
        try:
            pixels = decode_jpeg(torch.frombuffer(without_exif(data), dtype=torch.uint8))
        except RuntimeError:
            return None
        return pixels.permute(1, 2, 0).numpy()

    return decode
