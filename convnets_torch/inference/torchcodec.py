"""Optional JPEG decoder torchcodec: in threads on the CPU, or batches of files on a device."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from convnets_torch.images.decoding import without_exif
from convnets_torch.images.preprocessing import Pixels
from convnets_torch.inference.batching import is_out_of_memory


def jpeg_decoder() -> Callable[[bytes], Pixels | None]:
    """Return torchcodec's JPEG decoder as `Reading.jpeg`; ImportError if it is not installed, or too old."""
    decode_jpeg = _torchcodec()

    def decode(data: bytes) -> Pixels | None:
        try:
            pixels: Tensor = decode_jpeg(torch.frombuffer(without_exif(data), dtype=torch.uint8))
        except Exception:  # whatever it is, Pillow then reads the file or reports the error
            return None
        return pixels.permute(1, 2, 0).numpy()

    return decode


def batch_decoder(device: torch.device) -> Callable[[Sequence[bytes]], list[Tensor | None]]:
    """Return torchcodec's JPEG decoder for batches of files on a device: nvJPEG on CUDA.

    Returns:
        A function of whole files that returns for each its pixels (3, H, W) uint8, RGB, on the device, as stored,
        ignoring EXIF rotation; None for a refused file, which only costs the others time.

    Raises:
        ImportError: torchcodec is not installed, too old, or cannot decode on this device.
    """
    decode_jpeg = _torchcodec()

    def decode(files: Sequence[bytes]) -> list[Tensor | None]:
        try:
            return list(
                decode_jpeg([torch.frombuffer(without_exif(data), dtype=torch.uint8) for data in files], device=device)
            )
        except Exception as error:
            if is_out_of_memory(error):
                raise
        if len(files) == 1:
            return [None]
        half = len(files) // 2  # bisect for the file that failed
        return decode(files[:half]) + decode(files[half:])

    file = io.BytesIO()
    Image.new("RGB", (16, 16), "white").save(file, "JPEG")
    if decode([file.getvalue()]) == [None]:
        raise ImportError(
            f"torchcodec does not decode JPEG files on {device}: it may be built for the CPU alone; install its build"
            " for CUDA, or leave out the decoder"
        )
    return decode


def _torchcodec() -> Callable[..., Any]:
    try:
        from torchcodec.decoders import decode_jpeg
    except (ImportError, RuntimeError) as error:  # older versions require FFmpeg and raise RuntimeError
        raise ImportError(
            f"the decoder torchcodec cannot be used ({type(error).__name__}); version 0.16 or newer is required:"
            " pip install 'convnets-torch[torchcodec]'"
        ) from None
    return decode_jpeg
