"""What a step of training costs, part by part, and what the device could do at best."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from aneurysm.models.registry import build_model

if TYPE_CHECKING:
    from aneurysm.training.config import ResolvedConfig
    from aneurysm.training.module import PatchModule

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_PARTS = ("augmentation", "forward", "loss", "backward", "optimiser and mean of weights")


class Phases(pl.Callback):
    """
    The time of all steps after the warm-up; with `hooked`, also that of each part of a step.

    It must be the last callback, or what others do after a step is not counted.
    """

    def __init__(self, warm_up: int) -> None:
        self._warm_up, self._counts, self._hooked = warm_up, False, False
        self._started = self._last = self.elapsed_s = 0.0
        self._seconds: dict[str, list[float]] = {part: [] for part in _PARTS}

    @contextmanager
    def hooked(self, module: PatchModule) -> Iterator[None]:
        """Tell augmentation, forward and loss apart."""
        hooks = [
            module.model.register_forward_pre_hook(lambda *_: self._mark("augmentation")),
            module.model.register_forward_hook(lambda *_: self._mark("forward")),
        ]
        self._hooked = True
        yield
        for hook in hooks:
            hook.remove()

    def seconds(self) -> dict[str, float]:
        """Return the median of each part."""
        return {part: median(found) for part, found in self._seconds.items() if found}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Begin to count after the warm-up."""
        if batch_idx == self._warm_up:
            _wait()
            self._counts, self._started = True, time.perf_counter()
        self._mark(None)

    def on_before_backward(self, *_: Any) -> None:
        """Note the end of the loss."""
        self._mark("loss")

    def on_after_backward(self, *_: Any) -> None:
        """Note the end of the backward pass."""
        self._mark("backward")

    def on_train_batch_end(self, *_: Any) -> None:
        """Note the end of the step."""
        self._mark("optimiser and mean of weights")

    def on_train_epoch_end(self, *_: Any) -> None:
        """Note the end of all steps."""
        _wait()
        self.elapsed_s = time.perf_counter() - self._started

    def _mark(self, part: str | None) -> None:
        if not (self._counts and self._hooked):
            return
        _wait()
        now = time.perf_counter()
        if part is not None:
            self._seconds[part].append(now - self._last)
        self._last = now


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def synchronisations(run: Callable[[], None]) -> int:
    """Return how often ``run`` made the CPU wait for the GPU."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA" in str(warning.message) for warning in told)


def flops_per_patch(config: ResolvedConfig) -> float:
    """Return the operations of forward and backward of one patch, counted on tensors without data."""
    with FakeTensorMode():
        model = build_model(config.model, config.in_channels, **config.model_options).train()
        # Two patches: batch normalisation refuses one whose last features are a single cell.
        image = torch.empty(2, config.in_channels, *config.patch)
        with FlopCounterMode(display=False) as counter:
            model(image).logits.sum().backward()
    return counter.get_total_flops() / 2


def peak_flops(precision: str) -> float:
    """Return the operations a second of a product of large square matrices on this device."""
    on_gpu = torch.cuda.is_available()
    n = 8192 if on_gpu else 2048
    a = torch.randn(n, n, device="cuda" if on_gpu else "cpu", dtype=_DTYPES[precision])
    best = float("inf")
    for _ in range(5):
        _wait()
        started = time.perf_counter()
        a @ a
        _wait()
        best = min(best, time.perf_counter() - started)
    return 2 * n**3 / best


def device_name(*, short: bool = False) -> str:
    """Return what the models run on."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return "a CPU" if short else f"CPU, {torch.get_num_threads()} threads"
