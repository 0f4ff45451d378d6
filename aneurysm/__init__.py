"""DICOM series -> Zarr cache -> random 3D patches -> a model that finds intracranial aneurysms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aneurysm.inference.predictor import load_predictor

__all__ = ["__version__", "load_predictor"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # At its first use: it loads torch and what reads DICOM, which most of the package does without.
    if name == "load_predictor":
        from aneurysm.inference.predictor import load_predictor

        return load_predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
