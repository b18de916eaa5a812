"""Convert weights files of other frameworks to safetensors files with a card.

The public names are listed in `__init__.pyi` and loaded on first use, so that the readers do not import torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
