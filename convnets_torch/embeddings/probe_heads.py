"""A linear probe as the head of the network whose features it reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from convnets_torch.embeddings.probes import LinearProbe
from convnets_torch.last_layers import with_last_layer
from convnets_torch.networks import Network


def with_probe(network: Network, probe: LinearProbe, remarks: Mapping[str, Any] | None = None) -> Network:
    """The network with the probe in the place of its last dense layer; of one without a head, behind its mean.

    What `embed` gives by default goes into the probe; `classify`, `heatmap` and `gradcam` work with its classes.

    Args:
        network: with its card; it is left as it is and shares all other parameters with what is returned.
        probe: of vectors that `embed` or `embed_classes` gave for this network.
        remarks: plain data to keep in the card beside the kind of probe, such as its accuracy.

    Returns:
        A network in eval mode with a card of its own, which `save` takes. Its card says softmax: for logistic
        regression these are scikit-learn's probabilities, for a support vector machine numbers with the same order.

    Raises:
        ValueError: the network has no card, or was prepared; or the probe reads another number of values.

    >>> import numpy as np
    >>> from convnets_torch import load
    >>> flowers = LinearProbe("logistic", ("aster", "bellis"), np.zeros((2, 40)), np.array([0.0, 1.0]), 20)
    >>> network = with_probe(load("alexnet.safetensors"), flowers)
    >>> network.card.class_names, network(torch.zeros(1, 3, 227, 227)).tolist()
    (('aster', 'bellis'), [[0.0, 1.0]])
    """
    return with_last_layer(
        network,
        torch.from_numpy(probe.weight),
        torch.from_numpy(probe.bias),
        probe.classes,
        f"last dense layer replaced by a probe of {len(probe.classes)} classes ({probe.kind})",
        remarks={"probe": {"kind": probe.kind, "pictures": probe.pictures, **(remarks or {})}},
    )
