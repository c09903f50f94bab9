"""Which device computes, and in which precision."""

from __future__ import annotations

import torch

from pgpsam.errors import UserError

BFLOAT16_SINCE = (8, 0)  # the compute capability; `is_bf16_supported` also says yes to cards that emulate it


def choose_device(name: str = "auto") -> torch.device:
    """'auto' -> the first CUDA device that computes, Apple's, or the CPU; otherwise the named one.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        cards = [f"cuda:{number}" for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0)]
        working = next((card for card in cards if not refusal(card)), "")
        name = working or ("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device '{name}'", "Choose auto, cpu, cuda, cuda:N or mps.") from error
    present = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if device.type not in present or (device.index or 0) >= present[device.type]:
        raise UserError(f"device {name} is not available on this computer", "Use --device auto or cpu.")
    return device


def refusal(card: str) -> str:
    """Why a CUDA device does not compute, or "". It is tried: a torch built for other cards sees it all the same."""
    try:
        (torch.ones(8, device=card) + 1).sum().item()
    except (RuntimeError, AssertionError) as error:  # the second one where torch was built without CUDA
        return str(error) or type(error).__name__
    return ""


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 where the device multiplies it in hardware; emulated it is slower than float32."""
    if device.type == "cpu":
        fast = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    else:
        fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= BFLOAT16_SINCE
    return torch.autocast(device.type, torch.bfloat16, enabled=fast)


def describe_device(device: torch.device) -> str:
    """What a run's cost is said of: the GPU's name, or how many threads the CPU gave."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU threads" if device.type == "cpu" else device.type
