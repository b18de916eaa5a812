"""Plan the conversion of a Keras file: derive its config if it has none, then translate the graph."""

from __future__ import annotations

from dataclasses import replace

from converters.graph_plan import plan_graph
from converters.layer_lists import oriented
from converters.options import Questions
from converters.plan import Plan, Wishes
from converters.readers.keras_file import KerasFile
from converters.weights_only import derive, with_config


def plan_keras(file: KerasFile, wishes: Wishes | None = None) -> tuple[KerasFile, Plan]:
    """Check all of a file and plan its conversion, without reading a weight.

    Args:
        file: the file's description.
        wishes: the user's options, for what the file does not specify.

    Returns:
        The file, with the config that was derived if it holds none; and the plan.

    Raises:
        ValueError: the network is unknown; arrays are missing, superfluous or of a wrong shape (all are named); or
            options are required that neither the file nor the user gives (all are asked).
    """
    wishes, questions = wishes or Wishes(), Questions(file.path)
    if file.config is None:
        file = oriented(file)
        config, notes, wishes = derive(file, wishes, questions)
        described = with_config(file, config)
        plan = plan_graph(described, wishes, questions)
        return described, replace(plan, choices=(*notes, *plan.choices))
    try:
        return file, plan_graph(file, wishes, questions)
    except (LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(
            f"{file.path}: its model config is incomplete or malformed ({error!r:.200}); save the model again"
        ) from None
