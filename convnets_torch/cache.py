"""Weights by name: where they are kept, and how a name is looked up. Nothing is ever downloaded."""

from __future__ import annotations

import os
from pathlib import Path

from convnets_torch.files import check_regular


def cache_folder() -> Path:
    """Where weights are kept by name: `CONVNETS_TORCH_HOME`, else the platform's cache folder."""
    if home := os.environ.get("CONVNETS_TORCH_HOME"):
        return Path(os.path.expanduser(home))  # noqa: PTH111 - Path.expanduser raises where there is no such user
    from platformdirs import user_cache_path

    return user_cache_path("convnets-torch", appauthor=False)


def find(name: str | os.PathLike[str]) -> Path:
    """The file that `name` means: a file of that name, else `name.safetensors` in the user's cache.

    Nothing is ever downloaded.

    Raises:
        OSError: there is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    bare = path.parent == Path() and path.name == str(name)
    if bare:
        cached = cache_folder() / (path.name if path.suffix == ".safetensors" else f"{path.name}.safetensors")
        if cached.is_file():
            return cached
    if path.exists() or not bare:
        check_regular(path)
    held = ", ".join(sorted(file.stem for file in cache_folder().glob("*.safetensors"))) or "nothing"
    raise FileNotFoundError(
        f"{name} is neither a file nor in the cache {cache_folder()}, which holds {held};"
        " convert weights into it with `convnets-torch convert IN.h5 --cache`"
    )
