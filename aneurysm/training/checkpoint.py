"""
Checkpoints: weights with all that predicting with them takes, written so that a full disk leaves the old one whole.

A file is a dict that ``torch.load(weights_only=True)`` reads: it runs no code, whoever made it. Before that every byte
of it is checked (`aneurysm.training.checkpoint_archive`). Its keys::

    format_version  1
    package_version of aneurysm
    model           state dict: the running mean of the weights, which was validated, if the run keeps one
    config          table of the resolved `aneurysm.training.config.TrainConfig`
    labels          the 14, in the order of the outputs
    spec            TOML text of the cache spec, which holds windows, spacing, recipe and digest
    epoch           whole epochs that the weights have seen
    metrics         of that epoch: score, present_auc, site_auc (None: undefined), loss
    prevalence      share of positives of the 14 labels in the series trained on (None: not known of any)
    modalities      of the series trained on, as in the manifest

``last.ckpt`` also has what a run resumes from::

    state_dict      of the module that is trained: the weights themselves, and not their mean
    optimizer       its state, learning rate included
    scaler          state of fp16's; empty in other precisions
    global_step     steps of the optimiser
    loop            row of an epoch that is not validated yet, best measure so far, sums of losses
    loader          which patches come next
    folds           checksum of folds.csv
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aneurysm._version import __version__
from aneurysm.errors import NoSpaceError, UsageError
from aneurysm.labels import LABELS, UNKNOWN_MODALITY
from aneurysm.models.registry import build_model, shipped_architecture
from aneurysm.processes.files import is_disk_full, replaced_file
from aneurysm.spec import CacheSpec, parse_spec
from aneurysm.training.checkpoint_archive import ArchiveError, check_archive
from aneurysm.training.config import ResolvedConfig
from aneurysm.training.config_file import config_table, parse_resolved
from aneurysm.training.pretrained import without_pretrained

CHECKPOINT_FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """
    What a file holds, checked.

    Attributes
    ----------
    weights
        State dict of the model, on the CPU.
    config
        Of the run.
    spec
        Of the cache that it was trained on.
    epoch, metrics
        See the module's page.
    prevalence, modalities
        As there; None of a checkpoint that does not say.
    """

    path: Path
    weights: dict[str, Tensor]
    config: ResolvedConfig
    spec: CacheSpec
    epoch: int
    metrics: dict[str, float | None]
    prevalence: tuple[float | None, ...] | None = None
    modalities: tuple[str, ...] | None = None

    @property
    def takes_dicom(self) -> bool:
        """Whether it was trained on series of a modality, and not on arrays without one alone."""
        if self.modalities is None:  # older versions did not say; specs that take such arrays are made for them
            return self.spec.intensity.array is None
        return bool(set(self.modalities) - {UNKNOWN_MODALITY})

    @property
    def takes_plain_arrays(self) -> bool:
        """Whether it was trained on arrays without a modality, whose values are neither HU nor those of MR."""
        return self.modalities is None or UNKNOWN_MODALITY in self.modalities

    def build_model(self, architecture: str | None = None) -> nn.Module:
        """
        Return the model with its weights, on the CPU, in evaluation mode.

        Parameters
        ----------
        architecture
            Needed if it is one of the user's own: a file does not get to say what code runs.

        Raises
        ------
        UsageError
            The architecture is not of this package and not given, or the weights don't fit it.
        """
        name = architecture or shipped_architecture(self.config.model).name
        channels = self.config.in_channels(self.config.view_on(self.spec))
        model = build_model(name, channels, **without_pretrained(self.config.model_options))
        try:
            model.load_state_dict(self.weights)
        except RuntimeError as error:
            raise UsageError(f"{self.path}: the weights don't fit the model {name!r}: {error}") from error
        return model.eval()


def model_entries(
    weights: Mapping[str, Tensor],
    config: ResolvedConfig,
    spec: CacheSpec,
    epoch: int,
    metrics: Mapping[str, float | None],
    prevalence: Sequence[float | None],
    modalities: Iterable[str],
) -> dict[str, Any]:
    """Return the entries of a checkpoint that predicting takes."""
    return {
        "format_version": CHECKPOINT_FORMAT,
        "package_version": __version__,
        "model": dict(weights),
        "config": config_table(config),
        "labels": list(LABELS),
        "spec": spec.to_toml(),
        "epoch": epoch,
        "metrics": dict(metrics),
        "prevalence": list(prevalence),
        "modalities": sorted(set(modalities)),
    }


def save_atomically(content: Mapping[str, Any], path: Path) -> None:
    """
    Write a checkpoint beside its place, flush it, and rename it in.

    Raises
    ------
    NoSpaceError
        The disk is full; what was at ``path`` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replaced_file(path) as file:
            torch.save(dict(content), file)
    except (OSError, RuntimeError) as error:
        # torch reports a write that failed as a RuntimeError of its own, in the handling of the first.
        if not is_disk_full(error):
            raise
        there = f"{path} is still the one before" if path.exists() else f"there is no {path} yet"
        raise NoSpaceError(f"the disk of {path.parent} is full: the checkpoint can't be saved; {there}") from error


def read_file(path: Path) -> dict[str, Any]:
    """
    Read a checkpoint's dict to the CPU, running no code of it.

    Raises
    ------
    UsageError
        It is missing, damaged, or no checkpoint of this project.
    """
    if path.exists() and not path.is_file():  # nor a pipe, which would be waited for
        raise UsageError(f"{path} is no file: name a checkpoint (*.ckpt)")
    try:
        # One file for both, which may be replaced at this moment.
        with path.open("rb") as file:
            check_archive(file)
            file.seek(0)
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
        _check_tensors(content)
    except FileNotFoundError as error:
        raise UsageError(f"there is no checkpoint {path}") from error
    except ArchiveError as error:
        raise UsageError(f"{path} is no checkpoint of aneurysm, or damaged: {error}") from error
    except OSError as error:
        raise UsageError(f"the checkpoint {path} can't be read: {error.strerror or error}") from error
    except Exception as error:  # torch's unpickler is an interpreter: of damaged bytes it raises what it will
        raise UsageError(f"{path} is no checkpoint of aneurysm, or damaged ({type(error).__name__})") from error
    found: dict[str, Any] = content if isinstance(content, dict) else {}
    version = found.get("format_version")
    if isinstance(version, int) and version > CHECKPOINT_FORMAT:
        raise UsageError(
            f"{path} was written by aneurysm {found.get('package_version')}, in format {version}; this one, "
            f"{__version__}, reads format {CHECKPOINT_FORMAT}: it takes a newer aneurysm"
        )
    if version != CHECKPOINT_FORMAT:
        raise UsageError(
            f"{path} is no checkpoint of aneurysm: its format_version is {version}, not {CHECKPOINT_FORMAT}"
        )
    return found


def _check_tensors(content: Any) -> None:
    """Make sure that no tensor claims more elements than it has: a copy of it would take all memory there is."""
    todo = [content]
    seen: set[int] = set()
    while todo:
        one = todo.pop()
        if isinstance(one, Tensor):
            if one.numel() * one.element_size() > one.untyped_storage().nbytes():
                raise ArchiveError(f"a tensor of {tuple(one.shape)} has {one.untyped_storage().nbytes()} bytes")
        elif isinstance(one, (dict, list, tuple)) and id(one) not in seen:
            seen.add(id(one))  # it may be nested without end, or in itself
            todo.extend(one.values() if isinstance(one, dict) else one)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """
    Read a checkpoint to predict with, or to begin from.

    Raises
    ------
    UsageError
        It is missing, damaged, of other labels, or its parts contradict each other.
    """
    return parse_checkpoint(read_file(Path(path)), Path(path))


def parse_checkpoint(content: Mapping[str, Any], path: Path) -> Checkpoint:
    """Check what `read_file` returned of ``path``. Raises as `load_checkpoint` does."""
    try:
        if tuple(content["labels"]) != LABELS:
            raise UsageError(f"{path} was trained on other labels: {', '.join(map(str, content['labels']))}")
        spec = parse_spec(content["spec"], f"the spec in {path}", resolved=True)
        config = parse_resolved(content["config"], f"the configuration in {path}")
        for name, tensor in content["model"].items():
            if not isinstance(tensor, Tensor):
                raise ValueError(f"{name} is no tensor")  # noqa: TRY004 - as all that is damaged
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{name} holds values that are not finite")
        return Checkpoint(
            path,
            content["model"],
            config,
            spec,
            int(content["epoch"]),
            _metrics(content["metrics"]),
            _prevalence(content.get("prevalence")),
            _modalities(content.get("modalities")),
        )
    except UsageError:  # a ValueError, too
        raise
    except Exception as error:  # any part may be of any type
        raise UsageError(f"{path} is damaged: {type(error).__name__} {error}") from error


def _metrics(value: Any) -> dict[str, float | None]:
    return {str(name): None if v is None else float(v) for name, v in value.items()}


def _prevalence(value: Any) -> tuple[float | None, ...] | None:
    if value is None:
        return None
    found = tuple(None if v is None else float(v) for v in value)
    if len(found) != len(LABELS) or any(v is not None and not 0 <= v <= 1 for v in found):
        raise ValueError(f"prevalence is {value}")
    return found


def _modalities(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise ValueError(f"modalities is {value}")
    return tuple(value)


def take_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> int:
    """
    Put the weights that fit, by name and shape, into ``model``; return how many tensors did.

    Raises
    ------
    UsageError
        None fits.
    """
    own = model.state_dict()
    fitting = {name: w for name, w in weights.items() if name in own and own[name].shape == w.shape}
    if not fitting:
        raise UsageError(f"none of the {len(weights)} tensors to begin from fits the model: is it of another kind?")
    model.load_state_dict({**own, **fitting})
    return len(fitting)
