"""TrainConfig: all that decides what a run learns, and how; what is left open follows from the model."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from aneurysm.labels import LABELS
from aneurysm.models.pooling import POOLINGS
from aneurysm.models.registry import find_architecture
from aneurysm.patches.augment_config import AugmentConfig
from aneurysm.patches.intensity import MrRange, named_windows
from aneurysm.patches.plan import Balance, Sampling
from aneurysm.patches.views.config import MipConfig, Patch3dConfig, SlicesConfig, ViewConfig
from aneurysm.patches.views.view import View
from aneurysm.spec import CacheSpec
from aneurysm.training.objective import TERMS

Precision = Literal["auto", "fp32", "bf16", "fp16"]

_Count = Annotated[int, Field(ge=1)]
_Edge = Annotated[int, Field(ge=8, le=1024)]
_Share = Annotated[float, Field(ge=0.0, le=1.0)]
_Weight = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
_Rate = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SamplingConfig(_Section):
    """Where patches come from; see `aneurysm.patches.plan.Sampling`."""

    balance: Balance = "natural"
    lesion: _Weight = 0.4
    vessel: _Weight = 0.3
    foreground: _Weight = 0.25
    uniform: _Weight = 0.05
    lesion_margin_mm: _Weight = 6.0

    def as_sampling(self) -> Sampling:
        """Return it as the loader takes it."""
        return Sampling(**self.model_dump())


class OptimizerConfig(_Section):
    """
    How weights are changed.

    The learning rate rises over the first ``warmup`` share of all steps, then falls as a cosine to ``final`` times
    its peak. ``clip_norm`` bounds the gradient's norm, ``accumulate`` batches make one step. Weights that are
    validated and kept are a running mean with ``ema_decay`` per step; 0 keeps the last ones.
    """

    name: Literal["adamw", "sgd"] = "adamw"
    learning_rate: _Rate | None = None
    weight_decay: _Weight | None = None
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    warmup: _Share = 0.05
    final: _Share = 0.01
    clip_norm: _Weight = 1.0
    accumulate: _Count = 1
    ema_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999


class ValidationConfig(_Section):
    """Whole held-out series by sliding windows, every so many epochs and after the last."""

    every: _Count = 1
    overlap: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.25
    batch_size: _Count | None = None
    pooling: str | None = None


class TrainConfig(_Section):
    """
    A run. None stands for the model's own default, which `resolved` fills in.

    Attributes
    ----------
    cache
        Folder of the cache, or its URL in an object store.
    local_cache, local_cache_gb
        Where volumes of a cache at a URL are copied to, and how many GB they may take there; see
        `aneurysm.cache.local_copy.LocalCopy.of`.
    model, model_options
        A name of `aneurysm.models.registry`, or ``module:function``; and the options of its builder.
    weights_sha256
        Of the file that the model option ``weights`` names: a run notes it, and refuses another one.
    view
        What the model sees; see `aneurysm.patches.views.config.ViewConfig`.
    init
        Checkpoint whose weights to begin with: those that fit by name and shape.
    patch
        Of view patch3d, and of no other: voxels (z, y, x) of a training patch, and of a window in validation.
    batch_size
        Samples per step and device.
    epochs, steps_per_epoch
        An epoch is so many batches; validation follows it.
    save_every
        Within an epoch ``last.ckpt`` is saved after this many batches, for the day when the power fails.
    fold, folds, folds_file
        Held out is fold ``fold`` of ``folds``, or of the file's.
    test_fold
        The fold that is neither trained on nor held out, but kept for a test.
    modality
        Only series of these modalities; all if empty.
    limit_train, limit_val
        At most this many series, positive and negative ones in proportion.
    keep_positives
        ``limit_train`` leaves out no positive series: the others are thinned, by one factor in every modality.
    losses
        Weight by term of `aneurysm.training.objective.TERMS`.
    pos_weight
        Factor of the positives in ``bce``: one, or 14 in the order of `aneurysm.labels.LABELS`; ``auto`` takes those of
        `aneurysm.training.objective.positive_weights`, and the run's config.toml has them.
    lesion_radius_mm, lesion_shape
        What the lesion map is taught; see `aneurysm.patches.targets.map_targets`.
    ct_windows_hu
        Channels of CT, one for each window: (low, high) in HU, or one of `aneurysm.patches.intensity.CT_WINDOWS_HU` by
        name; none: one channel, in the cache's own window.
    precision
        ``auto`` is bf16 on a GPU that has it, else fp32.
    devices
        GPUs, or processes on a CPU; ``auto`` is all GPUs, or one process.
    workers
        Processes per device that read patches; None: what the CPUs allow.
    channels_last, compile
        Memory layout of convolutions, faster on most devices, and torch.compile.
    seed
        Of folds, weights, patches and augmentation.
    """

    cache: str = "cache"
    local_cache: str | None = None
    local_cache_gb: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] | None = None
    model: str = "resnet3d18"
    model_options: dict[str, bool | int | float | str] = {}
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    view: ViewConfig | None = None
    init: str | None = None
    patch: tuple[_Edge, _Edge, _Edge] | None = None
    batch_size: _Count | None = None
    epochs: _Count = 20
    steps_per_epoch: _Count = 500
    save_every: _Count = 1000
    fold: Annotated[int, Field(ge=0)] = 0
    folds: Annotated[int, Field(ge=2)] = 5
    folds_file: str | None = None
    test_fold: Annotated[int, Field(ge=0)] | None = None
    modality: tuple[str, ...] = ()
    limit_train: _Count | None = None
    limit_val: _Count | None = None
    keep_positives: bool = False
    losses: dict[str, _Weight] | None = None
    pos_weight: Literal["auto"] | _Rate | tuple[_Rate, ...] | None = None
    lesion_radius_mm: _Rate = 3.0
    lesion_shape: Literal["sphere", "gaussian"] = "sphere"
    ct_windows_hu: Annotated[tuple[tuple[float, float], ...], BeforeValidator(named_windows)] = ()
    precision: Precision = "auto"
    devices: Literal["auto"] | _Count = "auto"
    workers: Annotated[int, Field(ge=0)] | None = None
    channels_last: bool = True
    compile: bool = False
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    sampling: SamplingConfig = SamplingConfig()
    augment: AugmentConfig = AugmentConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    validation: ValidationConfig = ValidationConfig()

    @model_validator(mode="after")
    def _makes_sense(self) -> TrainConfig:
        if unknown := set(self.losses or ()) - set(TERMS):
            raise ValueError(f"losses: there is no loss {min(unknown)!r}. There are {', '.join(TERMS)}")
        if self.losses is not None and not any(self.losses.values()):
            raise ValueError("losses: no loss has a weight above 0")
        if self.validation.pooling is not None and self.validation.pooling not in POOLINGS:
            raise ValueError(f"validation.pooling: {self.validation.pooling!r} is none of {', '.join(POOLINGS)}")
        if isinstance(self.pos_weight, tuple) and len(self.pos_weight) != len(LABELS):
            raise ValueError(f"pos_weight: {len(self.pos_weight)} values, expected 1 or {len(LABELS)}")
        if self.folds_file is None and self.fold >= self.folds:
            raise ValueError(f"fold: there is no fold {self.fold} of {self.folds}; they count from 0")
        if self.keep_positives and self.limit_train is None:
            raise ValueError("keep_positives: it goes with limit_train, which says how many series there are to be")
        if self.patch is not None and self.view is not None and self.view.name != "patch3d":
            raise ValueError(f"patch: of the view {self.view.name!r} the size is set in its own section, [view]")
        if self.fold == self.test_fold:
            raise ValueError(f"test_fold: fold {self.fold} can't be held out and kept for a test, too")
        return self

    def resolved(self) -> ResolvedConfig:
        """
        Return it with the model's defaults where nothing was said.

        Raises
        ------
        UsageError
            There is no such model.
        """
        architecture = find_architecture(self.model)
        content = self.model_dump() | {"view": self.view}
        batch_size = self.batch_size or architecture.batch_size
        # SGD's rates are of another magnitude than AdamW's, of which the registry speaks.
        adamw = self.optimizer.name == "adamw"
        # A patch that was asked for says which view is meant, where the model has another one by default.
        _fill(content, "view", Patch3dConfig() if self.patch is not None else architecture.view)
        if content["view"].name == "patch3d":
            _fill(content, "patch", architecture.patch_shape)
        _fill(content, "batch_size", batch_size)
        _fill(content, "losses", dict(architecture.losses))
        _fill(content["optimizer"], "learning_rate", architecture.learning_rate if adamw else 0.01)
        _fill(content["optimizer"], "weight_decay", architecture.weight_decay if adamw else 1e-4)
        _fill(content["validation"], "batch_size", batch_size)
        _fill(content["validation"], "pooling", architecture.pooling)
        return ResolvedConfig.model_validate(content)

    @property
    def optimizer_steps(self) -> int:
        """How often the weights are changed in the whole run; the rest of an epoch makes a step of its own."""
        return self.epochs * math.ceil(self.steps_per_epoch / self.optimizer.accumulate)


class ResolvedOptimizer(OptimizerConfig):
    """An `OptimizerConfig` that leaves nothing open."""

    learning_rate: _Rate
    weight_decay: _Weight


class ResolvedValidation(ValidationConfig):
    """A `ValidationConfig` that leaves nothing open."""

    batch_size: _Count
    pooling: str


class ResolvedConfig(TrainConfig):
    """A `TrainConfig` in which the model's defaults are written out: what stands in a run's config.toml."""

    view: ViewConfig
    batch_size: _Count
    losses: dict[str, _Weight]
    optimizer: ResolvedOptimizer
    validation: ResolvedValidation

    @model_validator(mode="after")
    def _has_a_size(self) -> ResolvedConfig:
        if self.view.name == "patch3d" and self.patch is None:
            raise ValueError("patch: the view patch3d has no size")
        return self

    def view_on(self, spec: CacheSpec) -> View:
        """Return what the model sees of volumes of ``spec``. Raises `UsageError` if its pictures can't be stacked."""
        return self.view.build(spec.spacing_mm, self.patch)

    def in_channels(self, view: View) -> int:
        """Return the channels of the model's input: those of the view, in each window of CT."""
        return view.channels * max(1, len(self.ct_windows_hu))

    @property
    def mr_range(self) -> MrRange:
        """Whose percentiles MR's model units are of."""
        return self.view.mr_range if isinstance(self.view, SlicesConfig | MipConfig) else "series"


def _fill(content: dict[str, Any], key: str, value: Any) -> None:
    if content[key] is None:
        content[key] = value
