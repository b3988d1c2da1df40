"""Ordering of torch's and MAX's work on one GPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from max.driver import Device


class StreamOrder:
    """Makes MAX's queues wait for torch's current streams before a run, and the reverse after.

    Nothing blocks the host: both waits are events on the GPU. On the CPU all calls are no-ops.
    """

    def __init__(self, devices: Sequence[Device]) -> None:
        self._devices = [device for device in devices if not device.is_host]

    def before_run(self) -> None:
        """MAX starts after what torch has enqueued so far."""
        for stream, current in self._pairs():
            stream.wait_stream(current)

    def after_run(self) -> None:
        """What torch enqueues next starts after MAX is done."""
        for stream, current in self._pairs():
            current.wait_stream(stream)

    def _pairs(self) -> list[tuple[torch.cuda.Stream, torch.cuda.Stream]]:
        pairs: list[tuple[torch.cuda.Stream, torch.cuda.Stream]] = []
        for device in self._devices:
            if device.api == "metal":  # no stream handles to share: wait on the host
                torch.mps.synchronize()
                device.synchronize()
                continue
            handle = device.default_queue.native_stream_handle
            stream = torch.cuda.ExternalStream(handle, device=f"cuda:{device.id}")
            pairs.append((stream, torch.cuda.current_stream(device.id)))
        return pairs
