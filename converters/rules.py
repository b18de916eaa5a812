"""How pictures become input and outputs become probabilities: from the file, the user, or the released weights."""

from __future__ import annotations

from typing import cast, get_args

from converters.head_plan import Head
from converters.keras_file import KerasFile
from converters.plans import Wishes
from convnets_torch.card import Activation
from convnets_torch.networks import Network
from convnets_torch.preprocessing import GENERAL, NETWORKS, Preprocessing, preset, read_preprocessing

Front = tuple[tuple[float, float] | None, list[str]]


def settle_preprocessing(
    file: KerasFile,
    network: Network,
    name: str,
    front: Front,
    wishes: Wishes,
    *,
    released: bool,
    preset_name: str | None,
) -> tuple[Preprocessing, list[str]]:
    """The preprocessing for the card, and what was chosen for want of better.

    Args:
        network: for its size.
        name: of the network.
        front: what the model itself does to its input.
        wishes: a preset or a JSON file.
        released: whether these are weights that were released, or have their names and shapes.
        preset_name: of released weights of this lineage.

    Raises:
        ValueError: it must be said and is not; it is said twice; or it has another size than the model's input.
    """
    rescaling, chosen = front
    given = wishes.preprocessing
    if rescaling is not None:
        if given is not None:
            raise ValueError(
                f"{file.path}: its model rescales pictures itself (a Rescaling layer); leave out the preprocessing"
            )
        scale, offset = rescaling
        size = network.size[0] if network.size[0] == network.size[1] else network.size
        rule = Preprocessing("custom", size, size, "stretch", "bilinear", "rgb", (-offset,) * 3, scale=scale)
        return rule, [*chosen, "pictures are stretched to the input's size, as Keras's datasets do it"]
    if given is None and not released:
        known = dict.fromkeys((*NETWORKS[name][1], *GENERAL))
        raise ValueError(
            f"{file.path} does not say how its pictures were preprocessed; give --preprocessing with a JSON file or one"
            f" of {', '.join(known)}"
        )
    rule = chosen_preprocessing(name, given or preset_name, network.size)
    if given is None:
        chosen = [*chosen, f"pictures are prepared as {rule.name} has it, as for the released weights of these layers;"
                  " --preprocessing decides otherwise"]  # fmt: skip
    return rule, chosen


def chosen_preprocessing(network: str, given: str | None, size: tuple[int, int]) -> Preprocessing:
    """A preset by its name (None: that of the network's released weights), or the rule in a JSON file.

    Args:
        network: a name in `convnets_torch.NETWORKS`.
        given: the name, or the path of a file that ends in .json.
        size: (height, width) of the network's input in pixels.

    Raises:
        OSError: the file cannot be read.
        ValueError: the name is not known, or the file's rule has another size.
    """
    if given is None or not given.lower().endswith(".json"):
        return preset(network, given, size[0] if size[0] == size[1] else size)
    rule = read_preprocessing(given)
    if rule.shape != size:
        raise ValueError(f"{given} has the size {rule.size}, but the network's input is {size[0]}x{size[1]} pixels")
    return rule


def settle_activation(
    file: KerasFile, head: Head, wishes: Wishes, *, told: bool = False
) -> tuple[Activation, list[str]]:
    """The activation of the outputs, and what was chosen for want of better.

    Args:
        told: whether the head is a released one, whose activation is known.

    Raises:
        ValueError: it is not known, said twice, must be said, or does not fit a single output.
    """
    given = wishes.activation
    if given is not None and given not in get_args(Activation):
        raise ValueError(f"unknown activation {given!r}; known: {', '.join(get_args(Activation))}")
    if head.units is None:
        if given is not None:
            raise ValueError(f"{file.path} has no head, so no activation of its outputs; leave it out")
        return "none", []
    if head.activation is not None and given not in (None, head.activation):
        raise ValueError(f"{file.path} says that its activation is {head.activation}, not {given}; leave it out")
    activation = head.activation or given
    if activation is None and head.units == 1:
        raise ValueError(
            f"{file.path} has a single output and does not say its activation; give --activation sigmoid (for a"
            " probability) or none"
        )
    if activation == "softmax" and head.units == 1:
        raise ValueError(f"{file.path} has a single output, which no softmax fits; give --activation sigmoid or none")
    if activation is None and not told:
        note = "softmax is taken for the outputs, which the file does not say; --activation decides otherwise"
        return "softmax", [note]
    return cast(Activation, activation or "softmax"), []
