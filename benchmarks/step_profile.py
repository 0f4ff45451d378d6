"""What a step of training costs, part by part, and what the device could do at best."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from aneurysm.models.registry import build_model

if TYPE_CHECKING:
    from aneurysm.spec import load_spec
    from aneurysm.training.config import ResolvedConfig
    from aneurysm.training.learner import Learner
    from aneurysm.training.module import PatchModule
    from aneurysm.training.timed_loader import MicroBatch

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_PARTS = ("augmentation", "forward", "loss", "backward", "optimiser and mean of weights")


class Phases:
    """
    The time of all steps after the warm-up, and if wanted that of each part of a step.

    Parameters
    ----------
    warm_up
        Batches that are not counted.
    parts
        Tell the parts of a step apart: the device is waited for after each, which costs a little.

    Attributes
    ----------
    elapsed_s
        Of all that was counted.
    """

    def __init__(self, warm_up: int, *, parts: bool = False) -> None:
        self._warm_up, self._parts, self._counts = warm_up, parts, False
        self._last = self.elapsed_s = 0.0
        self._seconds: dict[str, list[float]] = {part: [] for part in _PARTS}

    def run(self, learner: Learner, batches: Iterable[MicroBatch]) -> None:
        """Learn from the batches."""
        started = 0.0
        with self._hooked(learner.module) if self._parts else nullcontext():
            for number, batch in enumerate(batches):
                if number == self._warm_up:
                    _wait()
                    self._counts, started = True, time.perf_counter()
                self._mark(None)
                losses = learner.losses(batch)
                self._mark("loss")
                learner.backward(losses["loss"])
                self._mark("backward")
                if batch.number + 1 == len(batch.step):
                    learner.update()
                self._mark("optimiser and mean of weights")
        _wait()
        self.elapsed_s = time.perf_counter() - started

    def seconds(self) -> dict[str, float]:
        """Return the median of each part."""
        return {part: median(found) for part, found in self._seconds.items() if found}

    @contextmanager
    def _hooked(self, module: PatchModule) -> Iterator[None]:
        """Tell augmentation, forward and loss apart."""
        hooks = [
            module.model.register_forward_pre_hook(lambda *_: self._mark("augmentation")),
            module.model.register_forward_hook(lambda *_: self._mark("forward")),
        ]
        yield
        for hook in hooks:
            hook.remove()

    def _mark(self, part: str | None) -> None:
        if not (self._counts and self._parts):
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
        view = config.view_on(load_spec("rsna-1mm"))
        model = build_model(config.model, config.in_channels(view), **config.model_options).train()
        # Two patches: batch normalisation refuses one whose last features are a single cell.
        image = torch.empty(2, config.in_channels(view), *view.shape)
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
