"""Converters from the files of other frameworks to safetensors that know what they are.

The public names are listed in `__init__.pyi` and resolved on first use: some need torch, the readers do not.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
