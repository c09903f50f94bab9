"""Low-rank adaptation of the encoder's attention, through peft, on q and v only.

h = W x + (alpha / r) B A x, with A [r, C] and B [C, r]; B starts at zero, so that an adapted encoder's output
is bit-identical to the frozen one's before training.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pgpsam.errors import UserError

if TYPE_CHECKING:
    from pgpsam.network.base import LoraSettings


def add_lora(encoder: nn.Module, rank: int, alpha: float, stages: str = r".*") -> list[str]:
    """Freeze the encoder and put LoRA on every Linear named q or v; in place.

    Args:
        encoder: an encoder whose attention has Linears called `q` and `v`.
        rank: r; 0 only freezes.
        alpha: the scale's numerator; the papers' alpha equals the rank.
        stages: a regular expression that the module's path must match in full before `.q` or `.v`.

    Returns:
        The names of the adapted Linears.

    Raises:
        UserError: the encoder has no Linear that matches, or `stages` is no regular expression.
    """
    encoder.requires_grad_(False)
    if rank == 0:
        return []
    from peft import LoraConfig, inject_adapter_in_model  # seconds to import, and only training needs it

    names = adapted_linears(encoder, stages)
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, bias="none", target_modules=names)
    inject_adapter_in_model(config, encoder)
    return names


def adapted_linears(encoder: nn.Module, stages: str) -> list[str]:
    """The names of the Linears that LoRA adapts.

    Raises:
        UserError: as `add_lora`.
    """
    pattern = rf"(?:{stages})\.(q|v)"
    try:
        names = [n for n, m in encoder.named_modules() if isinstance(m, nn.Linear) and re.fullmatch(pattern, n)]
    except re.error as error:
        raise UserError(f"lora_stages '{stages}' is not a regular expression: {error}") from error
    if not names:
        raise UserError(f"lora_stages '{stages}' matches no attention of {type(encoder).__name__}")
    return names


@torch.no_grad()
def merge_lora(
    encoder: nn.Module, tensors: Mapping[str, Tensor], settings: LoraSettings, name: str
) -> dict[str, Tensor]:
    """W + (alpha / r) B A in place of W: a trained encoder without peft, and without its cost at inference.

    Args:
        encoder: without LoRA, in place.
        tensors: an adapter's, named as `add_lora` and peft name them in a network whose encoder is `encoder`.
        settings: of the network that was trained; a rank of 0 merges nothing.
        name: what error messages call the adapter.

    Returns:
        The adapter's other tensors.

    Raises:
        UserError: a tensor too few, or of another shape.
    """
    rest = dict(tensors)
    for path in adapted_linears(encoder, settings.lora_stages) if settings.lora_rank else ():
        down, up = (rest.pop(f"encoder.{path}.lora_{part}.default.weight", None) for part in "AB")
        weight = encoder.get_parameter(f"{path}.weight")
        if down is None or up is None or (len(up), *down.shape) != (len(weight), settings.lora_rank, weight.shape[1]):
            raise UserError(f"model {name}: its adapter does not fit its method (LoRA of {path})")
        weight.add_(settings.lora_alpha / settings.lora_rank * (up.float() @ down.float()))
    return rest


def trained_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Name -> tensor of every parameter that training may change: what an adapter file holds."""
    return {name: value.detach() for name, value in module.named_parameters() if value.requires_grad}


def put_tensors(module: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Put an adapter's tensors back, each into the trainable parameter of its name; the inverse of the above.

    Args:
        name: what error messages call the adapter.

    Raises:
        UserError: a tensor too many or too few, or of another shape.
    """
    own = {key: value for key, value in module.named_parameters() if value.requires_grad}
    if odd := sorted(own.keys() ^ tensors.keys()):
        raise UserError(f"model {name}: its adapter does not fit its method ({odd[0]} and {len(odd) - 1} others)")
    for key, value in tensors.items():
        if own[key].shape != value.shape:
            shapes = f"{tuple(value.shape)}, expected {tuple(own[key].shape)}"
            raise UserError(f"model {name}: {key} has shape {shapes}")
        own[key].data.copy_(value)
