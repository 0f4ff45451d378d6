"""`python -m benchmarks.train`: whether the loader keeps the device busy, and where a step's time goes.

For each batch size, round after round: the loader alone, the training step alone on batches that lie on the device
already, and both together, as `aneurysm train` runs them. The feed ratio is the third over the second: 1 means that
the device never waits. Prints Markdown; `--write` puts it into benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from aneurysm.cache.cache import Cache, open_cache
from aneurysm.models.registry import build_model
from aneurysm.patches.loader import PatchLoader
from aneurysm.training.config import TrainConfig
from aneurysm.training.fit import for_machine, usual_workers
from aneurysm.training.learner import Learner
from aneurysm.training.module import PatchModule
from aneurysm.training.ranks import Ranks
from aneurysm.training.timed_loader import MicroBatch, TimedBatches
from benchmarks.options import add_usual_options, work_folder
from benchmarks.patch_data import make_cache
from benchmarks.step_profile import Phases, device_name, flops_per_patch, peak_flops, synchronisations
from benchmarks.table import Target, aims, command_line, machine, write_section

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from aneurysm.patches.batch import Batch
    from aneurysm.training.config import ResolvedConfig

_RESIDENT = 4
"""Different batches on the device; one alone would always have the same patches augmented."""
_NOTES = """\
"Loader": batches read and dropped. "Step": augmentation, forward, backward, optimiser and running mean of the weights,
on {resident} batches that lie on the device. "Both": the same steps, fed by the loader, through the same code as
`aneurysm train`, without validation. Patches a second are the medians of the rounds, the feed ratio is the median of
the rounds' own. Multiply-adds are counted as two operations, forward and backward; the peak is what a product of large
square matrices reaches on this device in this precision.
"""


@dataclass
class Found:
    """What the rounds of one batch size gave."""

    loader: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    both: list[float] = field(default_factory=list)
    memory_gb: float = 0.0
    syncs: float | None = None
    phases: dict[str, float] = field(default_factory=dict)

    @property
    def feed_ratio(self) -> float:
        """The median of the rounds' ratios."""
        return median(b / s for b, s in zip(self.both, self.step, strict=True))


class Resident:
    """Batches that lie on the device already, again and again."""

    def __init__(self, batches: list[Batch], steps: int) -> None:
        self._batches, self._steps = batches, steps

    def __len__(self) -> int:
        return self._steps

    def __iter__(self) -> Iterator[MicroBatch]:
        return (MicroBatch((batch,), 0) for batch in islice(cycle(self._batches), self._steps))


def main() -> int:
    """Time everything, print, and say with the exit code whether the aims are met."""
    options = _options()
    work = work_folder(options)
    cache = open_cache(options.cache or make_cache(work, options.series, options.size))
    found: dict[str, Found] = {}
    for batch_size in options.batch_size:
        found[f"batch {batch_size}"] = _measure(cache, _config(options, cache, batch_size), options)
    variants = {}
    if options.variants:
        base = _config(options, cache, options.batch_size[0])
        for name, changed in _variants(base).items():
            variants[name] = _measure(cache, changed, options, both=False)
    aim = 0.97 if torch.cuda.is_available() else 0.95
    targets = [
        Target(f"feed ratio at least {aim}, {name}", f"{f.feed_ratio:.3f}", f.feed_ratio >= aim)
        for name, f in found.items()
    ]
    text = _markdown(cache, found, variants, targets, options)
    print(text)
    if options.write:
        write_section(text)
    return 0 if all(target.met for target in targets) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet3d18")
    parser.add_argument("--patch", type=int, default=96, help="edge in voxels")
    parser.add_argument("--batch-size", nargs="+", type=int, default=[16, 64])
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16", "fp16"))
    parser.add_argument("--workers", type=int, help="processes that read; as `aneurysm train` takes, if not given")
    parser.add_argument("--warm-up", type=int, default=10, help="steps that are not counted")
    parser.add_argument("--steps", type=int, default=60, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--variants", action="store_true", help="the step in other memory layouts, compiled, ...")
    parser.add_argument("--cache", type=Path, help="a cache; without it a phantom one is made")
    parser.add_argument("--series", type=int, default=8, help="phantom series to make")
    parser.add_argument("--size", choices=("full", "small", "tiny"), default="full", help="of the phantom series")
    add_usual_options(parser)
    return parser.parse_args()


def _config(options: argparse.Namespace, cache: Cache, batch_size: int) -> ResolvedConfig:
    edge = options.patch
    config = TrainConfig(
        cache=str(cache.root),
        model=options.model,
        patch=(edge, edge, edge),
        batch_size=batch_size,
        epochs=1,
        steps_per_epoch=options.warm_up + options.steps,
        precision=options.precision,
        workers=options.workers,
        devices=1,
    )
    return for_machine(config.resolved())


def _variants(base: ResolvedConfig) -> dict[str, ResolvedConfig]:
    plain = base.augment.model_validate({key: {"p": 0.0} for key in base.augment.model_dump() if key != "flip"})
    changes: dict[str, dict[str, Any]] = {
        "as it is": {},
        "without channels-last": {"channels_last": False},
        "torch.compile": {"compile": True},
        "no augmentation but flips": {"augment": plain},
    }
    if base.precision == "bf16":
        changes["fp32"] = {"precision": "fp32"}
    return {name: base.model_copy(update=changed) for name, changed in changes.items()}


def _measure(cache: Cache, config: ResolvedConfig, options: argparse.Namespace, *, both: bool = True) -> Found:
    torch.manual_seed(config.seed)
    view = config.view_on(cache.spec)
    module = PatchModule(build_model(config.model, config.in_channels(view), **config.model_options), config, view)
    learner = Learner(module, config, Ranks())
    device = learner.device
    loader = PatchLoader(
        cache,
        volumes=range(len(cache)),
        patch=config.patch,
        batch_size=config.batch_size,
        steps=config.steps_per_epoch,
        sampling=config.sampling.as_sampling(),
        workers=usual_workers(config),
        pin_memory=device.type == "cuda",
    )
    resident = Resident([b.to(device) for b in islice(loader, _RESIDENT)], config.steps_per_epoch)
    found = Found()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for number in range(options.rounds):
        print(f"batch {config.batch_size}: round {number + 1} of {options.rounds}", file=sys.stderr)
        found.step.append(_rate(learner, config, resident, options))
        if both:
            found.loader.append(_loader_rate(loader, options))
            found.both.append(_rate(learner, config, TimedBatches(loader, device), options))
    loader.close()
    if device.type == "cuda":
        found.memory_gb = torch.cuda.max_memory_allocated(device) / 1e9
        found.syncs = synchronisations(lambda: Phases(0).run(learner, resident)) / config.steps_per_epoch
    phases = Phases(options.warm_up, parts=True)
    phases.run(learner, resident)
    found.phases = phases.seconds()
    return found


def _rate(
    learner: Learner, config: ResolvedConfig, batches: Iterable[MicroBatch], options: argparse.Namespace
) -> float:
    """Return patches a second of the steps after the warm-up."""
    phases = Phases(options.warm_up)
    phases.run(learner, batches)
    return options.steps * config.batch_size / phases.elapsed_s


def _loader_rate(loader: PatchLoader, options: argparse.Namespace) -> float:
    started, patches = 0.0, 0
    for number, batch in enumerate(loader):
        if number == options.warm_up:
            started, patches = time.perf_counter(), 0
        patches += len(batch)
    return patches / (time.perf_counter() - started)


def _markdown(
    cache: Cache,
    found: dict[str, Found],
    variants: dict[str, Found],
    targets: list[Target],
    options: argparse.Namespace,
) -> str:
    first = _config(options, cache, options.batch_size[0])
    flops = flops_per_patch(first)
    peak = peak_flops(first.precision)
    lines = [f"# Feeding a model: {options.model} on {device_name(short=True)}", ""]
    lines += [f"- {key}: {value}" for key, value in machine(("aneurysm", "torch", "monai")).items()]
    lines += [
        f"- device: {device_name()}, {first.precision}; {peak / 1e12:.2f} TFLOP/s in a product of large matrices",
        f"- {options.model}, patches of {'x'.join(map(str, first.patch))}, {flops / 1e9:.0f} GFLOP each",
        f"- cache: {len(cache)} series; workers: {usual_workers(first)}",
        f"- command: `{command_line('benchmarks.train')}`",
        f"- {options.rounds} rounds of {options.steps} steps each, after {options.warm_up} that don't count",
        "",
        _NOTES.format(resident=_RESIDENT),
        *aims(targets),
        "| patches/s: | loader | step | both | feed ratio | share of peak | GPU memory, GB | syncs a step |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, f in found.items():
        lines.append(
            f"| {name} | {median(f.loader):.1f} | {median(f.step):.2f} | {median(f.both):.2f} | {f.feed_ratio:.3f} "
            f"| {median(f.both) * flops / peak:.0%} | {_or_dash(f.memory_gb or None)} | {_or_dash(f.syncs)} |"
        )
    lines += ["", "Where a step's time goes (waiting for the device after each part, which costs a little):", ""]
    parts = list(dict.fromkeys(part for f in found.values() for part in f.phases))
    lines += ["| | " + " | ".join(f"{part}, ms" for part in parts) + " |", "|---|" + "--:|" * len(parts)]
    for name, f in found.items():
        lines.append(f"| {name} | " + " | ".join(f"{f.phases[part] * 1e3:.1f}" for part in parts) + " |")
    if variants:
        rates: dict[str, float] = defaultdict(float, {name: median(f.step) for name, f in variants.items()})
        lines += ["", f"The step in other ways, batch {first.batch_size}:", ""]
        lines += ["| | patches/s | of the first | augmentation, ms |", "|---|--:|--:|--:|"]
        for name, f in variants.items():
            ratio = rates[name] / rates["as it is"]
            lines.append(f"| {name} | {rates[name]:.2f} | {ratio:.2f} | {f.phases['augmentation'] * 1e3:.1f} |")
    return "\n".join(lines) + "\n"


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


if __name__ == "__main__":
    sys.exit(main())
