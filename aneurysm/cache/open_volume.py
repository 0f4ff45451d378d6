"""open_volume(): the folder or URL of a volume -> OpenVolume, whose chunks can be read.

Metadata and shard of a folder are opened through one descriptor of it, so they belong together even if the volume is
replaced at that moment; if it is gone before both are open, the new one is opened. Annotations are replaced within the
folder (`aneurysm.cache.relabel`): zarr.json says where the vessel mask is that belongs to it, and if it is another one
by the time the mask is open, both are opened again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from aneurysm.cache.layout import IMAGE, STAGED_VESSELS, VESSELS
from aneurysm.cache.shard_reader import ShardReader, shard_layout
from aneurysm.documents import MOST_JSON, parse_json
from aneurysm.errors import CacheError, CacheNotFoundError, DamagedCacheError
from aneurysm.processes.shared_folder import describe_denial
from aneurysm.types import Triple
from aneurysm.volume.blocks import Blocks

_TRIES: Final = 20


class ZarrArray:
    """An array that the fast path can't read, read by zarr-python: other codecs, no shards, several, remote ones."""

    def __init__(self, array: Any, name: str) -> None:
        self._name, self._array = name, array
        z, y, x = self._array.shape
        self.shape: Triple = (z, y, x)
        self.dtype, self.fill = self._array.dtype, int(self._array.fill_value)

    def read(self, start: Triple, out: NDArray[Any]) -> None:
        """Fill ``out`` with the box at ``start``; see `ShardReader.read`."""
        try:
            out[...] = self._array[tuple(slice(s, s + n) for s, n in zip(start, out.shape, strict=True))]
        except Exception as error:
            raise DamagedCacheError(f"{self._name} can't be read: {error}") from error


@dataclass
class OpenVolume:
    """An open volume: its metadata, its voxels, its vessel mask if it has one, and its blocks once asked for."""

    attributes: dict[str, Any]
    image: ShardReader | ZarrArray
    vessels: ShardReader | ZarrArray | None
    blocks: Blocks | None = None


def open_volume(path: Path | str) -> OpenVolume:
    """
    Open the volume in a folder, or at a URL that fsspec knows.

    Raises
    ------
    CacheNotFoundError
        There is none.
    DamagedCacheError
        Its metadata are missing or damaged.
    """
    if isinstance(path, str):
        return _open_remote(path)
    name = path.name.removesuffix(".zarr")
    for _ in range(_TRIES):
        try:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise CacheNotFoundError(f"there is no volume {name} in the cache") from error
        except PermissionError as error:
            raise CacheError(f"volume {name} can't be read: {describe_denial(error)}") from error
        try:
            before = _version(folder)
            try:
                opened = _open_local(path, folder, name)
            except DamagedCacheError:
                if _version(folder) == before and _is_at(path, folder):
                    raise
                continue
            if _version(folder) == before:
                return opened
        finally:
            os.close(folder)
    raise DamagedCacheError(f"volume {name} is replaced faster than it can be read")


def _is_at(path: Path, folder: int) -> bool:
    """Return True if an open folder is that at ``path``, and was not replaced since."""
    try:
        return os.path.samestat(os.fstat(folder), path.stat())
    except FileNotFoundError:
        return False


def _version(folder: int) -> tuple[int, ...] | None:
    """Return what differs if zarr.json is replaced."""
    try:
        found = os.stat("zarr.json", dir_fd=folder)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def _open_local(path: Path, folder: int, name: str) -> OpenVolume:
    attributes = _read_json(folder, "zarr.json", name).get("attributes", {}).get("aneurysm")
    if not isinstance(attributes, dict):
        raise DamagedCacheError(f"volume {name}: zarr.json lacks the attribute aneurysm")
    image = _open_array(path, folder, IMAGE, name)
    vessels = vessel_path(attributes)
    return OpenVolume(attributes, image, None if vessels is None else _open_array(path, folder, vessels, name))


def vessel_path(attributes: Mapping[str, Any]) -> str | None:
    """Return where in a volume its vessel mask is, None if it has none. Raises `DamagedCacheError`."""
    mask = attributes.get("vessel_mask")
    if mask is None:
        return None
    if not isinstance(mask, dict) or mask.get("path", "") not in (VESSELS, STAGED_VESSELS, None):
        raise DamagedCacheError("the attribute vessel_mask is damaged")
    found: str | None = mask["path"]
    return found


def _open_array(path: Path, folder: int, array: str, name: str) -> ShardReader | ZarrArray:
    called = f"volume {name}, array {array}"
    layout = shard_layout(_read_json(folder, f"{array}/zarr.json", called))
    if layout is not None:
        return ShardReader(array, layout, called, folder)
    import zarr

    return ZarrArray(zarr.open_array(path / array, mode="r"), called)


def _open_remote(url: str) -> OpenVolume:
    import zarr

    name = url.rsplit("/", 1)[-1].removesuffix(".zarr")
    try:
        group: Any = zarr.open_group(url, mode="r")
        image, attributes = group[IMAGE], group.attrs.get("aneurysm")
    except (FileNotFoundError, KeyError) as error:
        raise CacheNotFoundError(f"there is no volume {url}") from error
    if not isinstance(attributes, dict):
        raise DamagedCacheError(f"volume {name}: zarr.json lacks the attribute aneurysm")
    called, vessels = f"volume {name}, array ", vessel_path(attributes)
    try:
        masked = None if vessels is None else ZarrArray(group[vessels], called + VESSELS)
    except KeyError as error:
        raise DamagedCacheError(f"volume {name} has lost its vessel mask") from error
    return OpenVolume(attributes, ZarrArray(image, called + IMAGE), masked)


def _read_json(folder: int, path: str, name: str) -> dict[str, Any]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
        with os.fdopen(descriptor, "rb") as file:
            content = parse_json(file.read(MOST_JSON))
    except (OSError, ValueError) as error:
        raise DamagedCacheError(f"{name}: {path} is missing or damaged ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise DamagedCacheError(f"{name}: {path} is damaged")
    return content
