"""DICOM series -> Zarr cache -> random 3D patches -> a model that finds intracranial aneurysms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aneurysm._version import __version__

if TYPE_CHECKING:
    from aneurysm.inference.predictor import load_predictor
    from aneurysm.precaching.array_writer import CacheWriter

__all__ = ["CacheWriter", "__version__", "load_predictor"]


def __getattr__(name: str) -> Any:
    # At their first use: they load torch, or what reads DICOM, which most of the package does without.
    if name == "load_predictor":
        from aneurysm.inference.predictor import load_predictor

        return load_predictor
    if name == "CacheWriter":
        from aneurysm.precaching.array_writer import CacheWriter

        return CacheWriter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
