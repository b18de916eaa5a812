"""State dicts of PyTorch (`.pth`), read without running what a pickle may hold."""

from __future__ import annotations

import os
import pickle

import torch
from torch import Tensor


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """All tensors of a `.pth` file by name.

    Raises:
        ValueError: the file is broken, holds more than tensors, or no state dict.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(f"{path} holds more than tensors, or is broken; save the state dict alone") from None
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it ends too early"
        raise ValueError(f"{path} is broken ({reason}); download it again") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict; save model.state_dict()")
    return state
