"""Where everything in a cache lies.

CACHE/
  spec.toml                     the resolved spec
  manifest.csv                  a row per series; derived, and rebuilt at will
  lesions.csv                   a row per localizer; derived as well
  volumes/<hh>/<uid>.zarr/      one OME-NGFF image; complete, since it was renamed into place
    zarr.json                   metadata: OME, and everything under "aneurysm"
    0/zarr.json, 0/c/0/0/0      the array and its one shard
    labels/vessels/...          the vessel mask, where there is one
    labels/bone/...             where bone is, of CT, in cells of about 2 mm
  rejected/<hh>/<uid>.json      why a series is not there
  .tables/<hh>.jsonl            parts of the tables, for the next run to bring up to date (see table_parts.py)
  .seconds/<random>.json        how long series took, of tasks that left the tables to `aneurysm manifest`
  .runs/<run>/                  of one run: what its processes did, a file each (aneurysm/precaching/ledger.py)
  .plan/                        the plan of `aneurysm plan`, which names files of the data; don't pass it on, nor .runs/
  .building/                    work in progress (see publish.py); the next run sweeps what dead processes left
  .patient-key                  the key of patient_key; don't pass it on with the cache
  .patient-key-check            a fingerprint of that key, by which another one is refused

<hh> are the first two hexadecimal digits of the UID's SHA-256: 256 folders, since one of millions of entries is slow to
list and to change on many file systems. In an object store keys are the same names.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FORMAT_VERSION: Final = 4
IMAGE: Final = "0"
"""The array of voxels, within a volume."""
VESSELS: Final = "labels/vessels/0"
"""The array of the vessel mask, within a volume that has one."""
BONE: Final = "labels/bone/0"
"""The array of the cells that hold bone, within a volume that has it."""
LABELS_TREE: Final = "labels"
"""The folder in which these lie; it is replaced as a whole."""
STAGED_TREE: Final = "labels.next"
"""The same folder while it takes the place of another one."""
LABEL_TREES: Final = (LABELS_TREE, STAGED_TREE)
VOLUME_ENDING: Final = ".zarr"
RECORD_ENDING: Final = ".json"
ABSENT: Final = 2**64 - 1
"""Stands in a shard's index, as offset and as length, for a chunk that holds only the fill value."""


SUBFOLDERS: Final = tuple(f"{i:02x}" for i in range(256))
"""Names of the folders in `CacheLayout.volumes` and `CacheLayout.rejected`."""


def subfolder_of(uid: str) -> str:
    """Return which of `SUBFOLDERS` a series is in."""
    return hashlib.sha256(uid.encode("utf-8", "surrogatepass")).hexdigest()[:2]


def volume_key(uid: str) -> str:
    """Return the path of a volume within a cache, without a slash at its end; in an object store its prefix."""
    return f"volumes/{subfolder_of(uid)}/{uid}{VOLUME_ENDING}"


def record_key(uid: str) -> str:
    """Return the path within a cache of the record of why a series is not cached."""
    return f"rejected/{subfolder_of(uid)}/{uid}{RECORD_ENDING}"


def label_trees(volume: Path) -> set[str]:
    """Return which of `LABEL_TREES` a volume has: more than one while its labels are replaced."""
    return {tree for tree in LABEL_TREES if (volume / tree).is_dir()}


@dataclass(frozen=True)
class CacheLayout:
    """Paths in the cache at ``root``."""

    root: Path

    @property
    def spec(self) -> Path:
        """The resolved spec."""
        return self.root / "spec.toml"

    @property
    def manifest(self) -> Path:
        """The table of series."""
        return self.root / "manifest.csv"

    @property
    def lesions(self) -> Path:
        """The table of localizer rows."""
        return self.root / "lesions.csv"

    @property
    def volumes(self) -> Path:
        """The folder of the `SUBFOLDERS` with complete volumes."""
        return self.root / "volumes"

    @property
    def rejected(self) -> Path:
        """The folder of the `SUBFOLDERS` with records of series that are not cached."""
        return self.root / "rejected"

    @property
    def building(self) -> Path:
        """The folder of unfinished work."""
        return self.root / ".building"

    @property
    def seconds(self) -> Path:
        """The folder of the times that are not in the manifest yet."""
        return self.root / ".seconds"

    @property
    def runs(self) -> Path:
        """The folder of what is known of runs, one below it for each."""
        return self.root / ".runs"

    @property
    def plan(self) -> Path:
        """The folder of the plan that was given no other place."""
        return self.root / ".plan"

    @property
    def tables(self) -> Path:
        """The folder of the parts of the tables."""
        return self.root / ".tables"

    def table_part(self, subfolder: str) -> Path:
        """Return the part of the tables of the series in one of the `SUBFOLDERS`."""
        return self.tables / f"{subfolder}.jsonl"

    @property
    def patient_key(self) -> Path:
        """The file with the secret of the keyed hash."""
        return self.root / ".patient-key"

    @property
    def patient_key_check(self) -> Path:
        """The file with the fingerprint of that secret."""
        return self.root / ".patient-key-check"

    def volume(self, uid: str) -> Path:
        """Return the folder of one volume."""
        return self.root / volume_key(uid)

    def record(self, uid: str) -> Path:
        """Return the record of one series that is not cached."""
        return self.root / record_key(uid)
