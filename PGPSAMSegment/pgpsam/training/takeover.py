"""Start from a trained model: all that it has learned, or, for other organs, what it has learned that they can use.

What looks at an image (the adapted encoder, the decoder's transformer and upscaling) serves any organ. What belongs to
an organ, a row in a tensor that has one for each, is taken over by its name; organs that the model does not know begin
as they would without it. Prototypes are comparisons between the organs, and begin anew where one is new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from pgpsam.errors import UserError
from pgpsam.labels import LabelSet, canonical_name
from pgpsam.models.lookup import find_model
from pgpsam.models.store import REFINER_PREFIX, SECOND_PREFIX, load_model, split_tensors, with_prefix
from pgpsam.network.lora import put_tensors, trained_tensors
from pgpsam.network.methods import SegmentationNetwork, build_network, make_settings
from pgpsam.training.origins import as_origin
from pgpsam.training.settings import TrainingSettings

COMPARED = "prototypes."  # what PGP-SAM and PG-SAM call the part that compares the organs


@dataclass(frozen=True)
class Start:
    """What a run begins with, beside the weights that are in its network.

    Attributes:
        told: what the model card must say of the model that it started from: name, cases, commands and, where the
            organs are the same, scores. refiner, refining: its volume refiner, model.json's description and the
            tensors, which stays where the organs are the same.
        whole: all weights are the model's; otherwise the prototypes, where there are any, are still to be started.
    """

    told: dict[str, Any] = field(default_factory=dict)
    refiner: dict[str, Any] = field(default_factory=dict)
    refining: dict[str, Tensor] = field(default_factory=dict)
    whole: bool = False


def take_over(network: SegmentationNetwork, settings: TrainingSettings, label_set: LabelSet) -> Start:
    """Put a trained model's weights into a network, which may see slices at another scale and look for other organs.

    Raises:
        UserError: it has another method, backbone or settings.
    """
    spec, tensors = load_model(find_model(settings.start_from))
    ours = asdict(make_settings(settings.method, settings.settings))
    for what, theirs, own in (
        ("method", spec.method, settings.method),
        ("backbone", spec.backbone, settings.backbone),
        ("method settings", spec.settings, ours),
    ):
        if theirs != own:
            raise UserError(f"cannot start from {settings.start_from}: its {what} is {theirs}, not {own}")
    tensors, refining = split_tensors(tensors, REFINER_PREFIX)
    tensors, _ = split_tensors(tensors, SECOND_PREFIX)  # it goes on from the first
    told = as_origin(spec)
    before, now = ([canonical_name(name) for name in labels.names] for labels in (spec.labels, label_set))
    if before != now:
        return Start(told, whole=put_shared(network, tensors, before, now, settings))
    put_tensors(network, tensors, spec.name)
    earlier = spec.training.get("started_from") or {}
    scores = {key: earlier[key] for key in ("scores", "scored") if key in earlier}
    if spec.scores:
        scores = {"scores": spec.scores, "scored": spec.name}
    return Start({**scores, **told}, spec.refiner, with_prefix(refining, REFINER_PREFIX), whole=True)


@torch.no_grad()
def put_shared(
    network: SegmentationNetwork,
    tensors: Mapping[str, Tensor],
    before: Sequence[str],
    now: Sequence[str],
    settings: TrainingSettings,
) -> bool:
    """Put into a network what a model of other organs has learned that its own can use.

    Args:
        network: looks for the organs `now`. tensors: the trained ones of a model that looks for the organs `before`.

    Returns:
        Whether all was taken over: the model knows every organ, and nothing in it mixes them.
    """
    own, rows = trained_tensors(network), rows_per_organ(network, settings)
    whole = set(now) <= set(before) and None not in rows.values()
    for name, value in own.items():
        each = rows[name]
        if each is None or (name.startswith(COMPARED) and not whole):
            continue
        if each == 0:
            value.copy_(tensors[name])
            continue
        background = len(value) // each > len(now)
        for row, organ in enumerate(now, start=background):
            if organ in before:
                known = before.index(organ) + background
                value[row * each : (row + 1) * each] = tensors[name][known * each : (known + 1) * each]
        if background:
            value[:each] = tensors[name][:each]
    return whole


def rows_per_organ(network: SegmentationNetwork, settings: TrainingSettings) -> dict[str, int | None]:
    """How many rows of each trained tensor belong to an organ: 0 where all organs share it.

    None where something else grows with the organs than the first axis, so that no part belongs to one alone. Found
    by comparing the network with one that has an organ more, whose tensors take no memory.
    """
    with torch.device("meta"):
        larger = build_network(settings.method, settings.backbone, network.classes + 1, settings.settings)
    found: dict[str, int | None] = {}
    for name, value in trained_tensors(larger).items():
        own = network.get_parameter(name)
        found[name] = len(value) - len(own) if value.ndim and value.shape[1:] == own.shape[1:] else None
        if value.shape == own.shape:
            found[name] = 0
    return found
