"""
`python -m benchmarks.models`: size and cost of the models, as Markdown.

Multiply-adds and memory are counted on tensors without data, so a patch of any size takes no time; seconds are
measured, on one core.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from aneurysm.models.registry import ARCHITECTURES, build_model
from aneurysm.processes.threads import limit_threads

SHAPES = ((96, 96, 96), (64, 128, 128))
TIMED_SHAPE = (64, 64, 64)


@contextmanager
def saved_bytes() -> Iterator[list[int]]:
    """Count the bytes that autograd keeps for the backward pass, each storage once, parameters aside."""
    storages: dict[int, int] = {}
    total = [0]
    kept = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            kept.append(storage)  # or its id would be given away again
            storages[id(storage)] = storage.nbytes()
            total[0] = sum(storages.values())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield total


def cost(name: str, shape: tuple[int, int, int]) -> tuple[float, float]:
    """Return multiply-adds of the forward pass and bytes kept for the backward pass, one patch, float32."""
    with FakeTensorMode():
        model = build_model(name).train()
        image = torch.empty(1, 1, *shape)
        with FlopCounterMode(display=False) as counter, saved_bytes() as kept:
            model(image)
    return counter.get_total_flops() / 2, kept[0]


def seconds(name: str) -> float:
    """Return seconds of forward and backward of one patch; the second time, the first pays for set-up."""
    model = build_model(name).train()
    image = torch.rand(1, 1, *TIMED_SHAPE)
    for _ in range(2):
        started = time.perf_counter()
        model(image).logits.sum().backward()
        taken = time.perf_counter() - started
    return taken


def main() -> None:
    limit_threads(1)
    warnings.simplefilter("ignore")
    timed = " x ".join(map(str, TIMED_SHAPE))
    shapes = [" x ".join(map(str, shape)) for shape in SHAPES]
    head = "".join(f" {shape}: GMAC | {shape}: MB |" for shape in shapes)
    print(f"| model | parameters, M | voxels per cell |{head} {timed}: s |")
    print("|---|--:|--:|" + "--:|--:|" * len(SHAPES) + "--:|")
    for name in ARCHITECTURES:
        model = build_model(name).eval()
        parameters = sum(p.numel() for p in model.parameters()) / 1e6
        with torch.no_grad():
            output = model(torch.zeros(1, 1, 32, 32, 32))
        stride = output.stride_zyx[0] if output.dense is not None else "-"
        costs = "".join(f" {macs / 1e9:.0f} | {kept / 1e6:.0f} |" for macs, kept in (cost(name, s) for s in SHAPES))
        print(
            f"| `{name}` | {parameters:.{1 if parameters > 1 else 2}f} | {stride} |{costs} {seconds(name):.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
