"""torchcodec's decoder of JPEG files, an optional one: in threads on the CPU, or batches of files on a device."""

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
    """torchcodec's decoder of JPEG files, as `Reading` wants it.

    Raises:
        ImportError: torchcodec is not installed, or too old.
    """
    decode_jpeg = _torchcodec()

    def decode(data: bytes) -> Pixels | None:
        try:
            pixels: Tensor = decode_jpeg(torch.frombuffer(without_exif(data), dtype=torch.uint8))
        except Exception:  # whatever it is, Pillow reads the file, or says why not
            return None
        return pixels.permute(1, 2, 0).numpy()

    return decode


def batch_decoder(device: torch.device) -> Callable[[Sequence[bytes]], list[Tensor | None]]:
    """torchcodec's decoder of JPEG files on a device: nvJPEG on CUDA.

    Returns:
        A function of whole files: of each its pixels (3, H, W) uint8, RGB, on the device, as they are stored, whatever
        rotation is noted; None of a file that is refused, which costs the others nothing but time.

    Raises:
        ImportError: torchcodec is not installed, or too old, or cannot decode on this device.
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
        half = len(files) // 2  # one of them is to blame
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
    except (ImportError, RuntimeError) as error:  # older ones want FFmpeg and raise RuntimeError
        raise ImportError(
            f"the decoder torchcodec cannot be used ({type(error).__name__}); its version 0.16 or newer is wanted:"
            " pip install 'convnets-torch[torchcodec]'"
        ) from None
    return decode_jpeg
