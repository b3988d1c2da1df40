"""torch.device <-> MAX devices, and the list of devices that graphs can run on."""

from __future__ import annotations

from functools import cache

import torch
from max.driver import (
    CPU,
    Accelerator,
    Device,
    accelerator_api,
    accelerator_architecture_name,
    accelerator_count,
)
from max.graph import DeviceRef

from torch_max_backend.errors import InputError


@cache
def _devices() -> tuple[Device, ...]:
    return (*(Accelerator(i) for i in range(accelerator_count())), CPU())


def get_accelerators() -> list[Device]:
    """The devices MAX can run on: accelerators in their order, the CPU last.

    ``get_accelerators()[0]`` is the best device; ``len(get_accelerators()) > 1`` tells that there
    is a GPU.
    """
    return list(_devices())


def this_gpu() -> dict[str, str] | None:
    """API ("cuda", "hip", "metal") and architecture ("sm_90") of this machine's first GPU."""
    if not accelerator_count():
        return None
    return {"api": accelerator_api(), "architecture": accelerator_architecture_name()}


def to_device_ref(device: torch.device) -> DeviceRef:
    """The graph-level device of a torch device ("cuda" is also what ROCm builds call theirs).

    Raises:
        InputError: a device type MAX does not run on, such as "meta" or "xpu".
    """
    if device.type == "cpu":
        return DeviceRef.CPU()
    if device.type in ("cuda", "mps"):
        return DeviceRef.GPU(device.index or 0)
    raise InputError(
        f"tensors on device {str(device)!r} cannot run on MAX; use 'cpu', 'cuda' or 'mps'"
    )


def to_device(ref: DeviceRef) -> Device:
    """The runtime device of a graph-level device; InputError when the machine has none such."""
    if ref.is_cpu():
        return _devices()[-1]
    accelerators = _devices()[:-1]
    if ref.id >= len(accelerators):
        raise InputError(
            f"the graph needs accelerator {ref.id}; MAX sees {len(accelerators)} "
            f"(api {accelerator_api()!r}). Move the model and its inputs to 'cpu' or another GPU"
        )
    return accelerators[ref.id]
