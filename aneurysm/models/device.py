"""A device by the name that a user gives: is it there, how exact it computes, and what to say when its memory ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from aneurysm.errors import DeviceMemoryError, UsageError
from aneurysm.processes.threads import usable_cpus


def checked_device(name: str) -> str:
    """
    Return the name of a device that is there.

    Parameters
    ----------
    name
        ``cpu``, ``cuda``, ``cuda:1``; ``auto``: a GPU if there is one.

    Raises
    ------
    UsageError
        There is no such device.
    """
    gpus = torch.cuda.device_count()
    if name == "auto":
        return "cuda" if gpus else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UsageError(f"there is no device {name!r}: give auto, cpu, cuda, or one of several GPUs as cuda:1")
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise UsageError(f"there is no {name}: GPUs that can be used here: {gpus}")
    return name


def check_devices(n: int, *, gpus: int) -> None:
    """Make sure that there are ``n`` GPUs, or without any a CPU for each of ``n`` processes. Raises `UsageError`."""
    if gpus and n > gpus:
        raise UsageError(f"--devices {n}: there are {gpus} GPUs here")
    if not gpus and n > (cpus := usable_cpus()):
        raise UsageError(
            f"--devices {n}: without a GPU these are processes on a CPU each, and {cpus} CPUs may be used here. Give "
            f"at most {cpus}"
        )


def usual_precision(device: str) -> str:
    """Return what is computed in on a device unless something else is asked for."""
    return "fp32" if torch.device(device).type == "cpu" else "bf16"


def check_precision(precision: str, device: str | torch.device) -> None:
    """
    Make sure that a device computes in a precision.

    Raises
    ------
    UsageError
        It is fp16, and the device a CPU: most operations have no such variant there, or one that is far slower.
    """
    if precision == "fp16" and torch.device(device).type == "cpu":
        raise UsageError(
            "--precision fp16 needs a GPU, and this runs on a CPU: take fp32, or bf16 on a CPU that has it"
        )


def set_channels_last(model: nn.Module) -> None:
    """Lay the weights of 3D and 2D convolutions out with their channels last, in place."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for weight in (*model.parameters(), *model.buffers()):
        if weight.dim() in formats:
            weight.data = weight.data.contiguous(memory_format=formats[weight.dim()])


def is_out_of_memory(error: Exception) -> bool:
    """Return True if an error is a lack of memory, here or on a device; of a CPU's torch says so in words alone."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)


@contextmanager
def raise_device_memory(device: str, batch_size: int) -> Iterator[None]:
    """Turn a lack of memory into a `DeviceMemoryError`, which says what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceMemoryError(
            f"out of memory on {device}, with {batch_size} windows at once: give a smaller --batch-size"
        ) from error
