"""AlexNet, VGG, ResNet50, InceptionV3 and EfficientNet-Lite0 in PyTorch, with heatmaps, from Keras weights.

The public names are listed in `__init__.pyi`. They are resolved on first use, so that importing the package costs
nothing.

>>> import convnets_torch
>>> convnets_torch.class_ids("dog") == list(range(151, 269))
True
"""

import sys

import lazy_loader

from convnets_torch._version import __version__ as __version__

_public, _, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ = sorted([*__all__, "convert"])


def __getattr__(name):  # type: ignore[no-untyped-def]
    """Import a public name or a subpackage when it is first asked for."""
    if name == "convert":
        from converters.conversion import convert

        return convert
    if name in __all__:
        return _public(name)
    from convnets_torch._moved import former

    return former(name)


def __dir__():  # type: ignore[no-untyped-def]
    return sorted({*globals(), *__all__})


class _FormerModules:
    """Asked last: finds the modules that version 0.1 had in this place."""

    @staticmethod
    def find_spec(fullname, path=None, target=None):  # type: ignore[no-untyped-def]
        if not fullname.startswith("convnets_torch."):
            return None
        from convnets_torch._moved import spec_of

        return spec_of(fullname)


sys.meta_path.append(_FormerModules)
