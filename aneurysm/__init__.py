"""
Brain CTA, MRA and MR series in DICOM -> one Zarr cache -> random patches -> a model that finds intracranial aneurysms.

    import aneurysm as an

    an.precache("data", "cache", spec="rsna-1mm", workers=32)
    loader = an.PatchLoader(an.open_cache("cache"), patch=(96, 96, 96), batch_size=8, steps=500)
    run = an.train(an.TrainConfig(cache="cache"), out="runs/a")

These names are what the package promises; all else is internal, and may move. Each is imported at its first use: this
module itself loads neither torch nor pydicom.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from aneurysm._version import __version__

if TYPE_CHECKING:
    from aneurysm import errors
    from aneurysm.cache.cache import Cache, open_cache
    from aneurysm.cache.volume import CachedVolume
    from aneurysm.inference.calibration import base_rates
    from aneurysm.inference.prediction import Prediction
    from aneurysm.inference.predictor import Predictor, load_predictor
    from aneurysm.inference.read_series import Failure
    from aneurysm.inference.rsna import RsnaPredictor
    from aneurysm.inference.series_paths import find_paths
    from aneurysm.labels import LABELS, SITES
    from aneurysm.patches.augment import augment
    from aneurysm.patches.augment_config import AugmentConfig
    from aneurysm.patches.batch import Batch
    from aneurysm.patches.loader import PatchLoader
    from aneurysm.patches.plan import Sampling
    from aneurysm.patches.samplers import PatchLocation
    from aneurysm.patches.views.view import Picture
    from aneurysm.precaching.array_writer import CacheWriter
    from aneurysm.precaching.run import precache
    from aneurysm.precaching.verify import verify
    from aneurysm.report.evaluate import evaluate
    from aneurysm.report.evaluation import EvaluateOptions
    from aneurysm.spec import CacheSpec, load_spec
    from aneurysm.training.checkpoint import Checkpoint, load_checkpoint
    from aneurysm.training.config import TrainConfig
    from aneurysm.training.fit import TrainedRun, train
    from aneurysm.volume.blocks import Blocks
    from aneurysm.windows.candidates import Candidate

_WHERE: Final = {
    "AugmentConfig": "patches.augment_config",
    "Batch": "patches.batch",
    "Blocks": "volume.blocks",
    "Cache": "cache.cache",
    "CacheSpec": "spec",
    "CacheWriter": "precaching.array_writer",
    "CachedVolume": "cache.volume",
    "Candidate": "windows.candidates",
    "Checkpoint": "training.checkpoint",
    "EvaluateOptions": "report.evaluation",
    "Failure": "inference.read_series",
    "LABELS": "labels",
    "PatchLoader": "patches.loader",
    "PatchLocation": "patches.samplers",
    "Picture": "patches.views.view",
    "Prediction": "inference.prediction",
    "Predictor": "inference.predictor",
    "RsnaPredictor": "inference.rsna",
    "SITES": "labels",
    "Sampling": "patches.plan",
    "TrainConfig": "training.config",
    "TrainedRun": "training.fit",
    "augment": "patches.augment",
    "base_rates": "inference.calibration",
    "evaluate": "report.evaluate",
    "find_paths": "inference.series_paths",
    "load_checkpoint": "training.checkpoint",
    "load_predictor": "inference.predictor",
    "load_spec": "spec",
    "open_cache": "cache.cache",
    "precache": "precaching.run",
    "train": "training.fit",
    "verify": "precaching.verify",
}
"""The module of each public name."""

__all__ = [
    "LABELS",
    "SITES",
    "AugmentConfig",
    "Batch",
    "Blocks",
    "Cache",
    "CacheSpec",
    "CacheWriter",
    "CachedVolume",
    "Candidate",
    "Checkpoint",
    "EvaluateOptions",
    "Failure",
    "PatchLoader",
    "PatchLocation",
    "Picture",
    "Prediction",
    "Predictor",
    "RsnaPredictor",
    "Sampling",
    "TrainConfig",
    "TrainedRun",
    "__version__",
    "augment",
    "base_rates",
    "errors",
    "evaluate",
    "find_paths",
    "load_checkpoint",
    "load_predictor",
    "load_spec",
    "open_cache",
    "precache",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("aneurysm.errors")
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"aneurysm.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
