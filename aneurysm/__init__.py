"""DICOM series -> Zarr cache -> random 3D patches -> a model that finds intracranial aneurysms."""

__version__ = "0.1.0"
