"""Write VGG under the names of torchvision's parameters."""

from __future__ import annotations

from pathlib import Path

from converters.names import TORCHVISION
from converters.plans import Plan


def torchvision_names(source: Path, plan: Plan) -> dict[str, str]:
    """Our parameter -> torchvision's, for a VGG whose head is the standard one.

    The layers are torchvision's; the preprocessing stays that of the weights (BGR for Keras's), as the card says.

    Raises:
        ValueError: torchvision has no such network.
    """
    lineage = next((one for one in TORCHVISION if one.network == plan.network and one.network.startswith("vgg")), None)
    if lineage is None:
        raise ValueError(
            f"{source} is {plan.network}, but only VGG16 and VGG19 have torchvision's layers; leave out the layout"
        )
    if plan.arguments.get("head") is not None or plan.arguments["classes"] is None or "size" in plan.arguments:
        raise ValueError(f"{source} has another head or input than torchvision's {plan.network}; leave out the layout")
    names = {}
    for step in plan.steps:
        module, _, role = step.row.parameter.rpartition(".")
        names[step.row.parameter] = f"{lineage.layers[module][0]}.{role}"
    return names
