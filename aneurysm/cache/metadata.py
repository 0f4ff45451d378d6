"""zarr.json of a volume, and the record of a series without one: their bytes, and the hashes that guard them.

A volume has two parts, each with a hash of its own in the attribute ``aneurysm``:

- ``voxel_hash``: the files of array `0`, and all of zarr.json that is no annotation. It never changes once the volume
  is built; two volumes of one series and spec have the same.
- ``annotation_hash``: the attributes `ANNOTATIONS`, and the decisions on the vessel mask. Tables and masks are
  corrected, and these follow (`aneurysm.precache.relabel`). The mask's files have a hash within the attributes.

Both hashes are of parsed content. That the bytes of zarr.json are exactly those that its content is written as is
checked beside them (`document_bytes`): a changed space or a digit beyond a float's precision changes no content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from aneurysm.cache.layout import IMAGE, VESSELS
from aneurysm.documents import MOST_JSON, read_bounded
from aneurysm.errors import CacheError, words_of
from aneurysm.processes.files import tree_files

FORMAT_VERSION: Final = 3
ANNOTATIONS: Final = frozenset(
    {"modality", "modality_source", "labels", "lesions", "unplaced_lesions", "vessel_mask", "patient_key"}
)
"""Keys of the attribute ``aneurysm`` that are annotations."""
_HASHES: Final = frozenset({"voxel_hash", "annotation_hash"})
_MASK_DECISION: Final = "mask_"


def document_bytes(document: Mapping[str, Any]) -> bytes:
    """Return the bytes of zarr.json whose content is ``document``."""
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()


def is_mask_decision(decision: Mapping[str, Any]) -> bool:
    """Return True if a decision is on the vessel mask, and so a part of the annotations."""
    return str(decision["code"]).startswith(_MASK_DECISION)


def voxel_hash(folder: Path, document: Mapping[str, Any]) -> str:
    """
    Return the hash of the voxels in ``folder``, a volume, and of all that ``document`` (its zarr.json) says of them.

    Raises
    ------
    OSError
        A file can't be read.
    LookupError, TypeError
        The document is damaged.
    """
    own = document["attributes"]["aneurysm"]
    kept = {k: v for k, v in own.items() if k not in ANNOTATIONS | _HASHES}
    kept["decisions"] = [d for d in own.get("decisions", ()) if not is_mask_decision(d)]
    content = {**document, "attributes": {**document["attributes"], "aneurysm": kept}}
    return _hash_of(_canonical(content), folder / IMAGE)


def annotation_hash(own: Mapping[str, Any]) -> str:
    """Return the hash of the annotations in ``own``, the attribute ``aneurysm``. Raises as `voxel_hash` does."""
    kept = {k: v for k, v in own.items() if k in ANNOTATIONS}
    if mask := kept.get("vessel_mask"):
        # While a mask is replaced, the new one stands in another place.
        kept["vessel_mask"] = {**mask, "path": VESSELS if mask["path"] else None}
    kept["decisions"] = [d for d in own.get("decisions", ()) if is_mask_decision(d)]
    return _hash_of(_canonical(kept))


def files_hash(folder: Path) -> str:
    """Return the hash of all files in ``folder`` and below, and of their names. Raises `OSError`."""
    return _hash_of(b"", folder)


def seal(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return ``document`` as JSON gives it back, with both hashes, of a volume whose arrays are in ``folder``."""
    # As JSON gives it back: the hash must not depend on whether a number was numpy's.
    content: dict[str, Any] = json.loads(document_bytes(document))
    own = content["attributes"]["aneurysm"]
    own["voxel_hash"] = voxel_hash(folder, content)
    own["annotation_hash"] = annotation_hash(own)
    return content


def find_damage(folder: Path, document: Mapping[str, Any], content: bytes) -> Iterator[str]:
    """
    Yield what is not as it was written in ``folder``, a volume whose zarr.json is ``content``, parsed ``document``.

    Raises
    ------
    OSError
        A file can't be read.
    LookupError, TypeError, ValueError
        The document is damaged.
    """
    own = document["attributes"]["aneurysm"]
    if own["voxel_hash"] != voxel_hash(folder, document):
        yield "voxel hash differs: a file or the metadata was changed or damaged since it was written"
    if own["annotation_hash"] != annotation_hash(own):
        yield "annotation hash differs: the metadata were changed or damaged since they were written"
    elif content != document_bytes(document):
        yield "zarr.json was changed or damaged since it was written"
    if (mask := own["vessel_mask"]) and mask["path"]:
        tree = folder / str(mask["path"]).split("/", 1)[0]
        if not tree.is_dir():
            yield "the vessel mask is lost"
        elif files_hash(tree) != mask["content_hash"]:
            yield "vessel mask's content hash differs: a file was changed or damaged since it was written"


def find_strays(folder: Path, document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names in ``folder``, a volume, that are no part of it. Raises as `find_damage` does."""
    mask = document["attributes"]["aneurysm"]["vessel_mask"]
    known = {"zarr.json", IMAGE, str(mask["path"]).split("/", 1)[0] if mask and mask["path"] else ""}
    yield from sorted(path.name for path in folder.iterdir() if path.name not in known)


def _canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _hash_of(content: bytes, folder: Path | None = None) -> str:
    digest = hashlib.sha256(content)
    for name, size in () if folder is None else tree_files(folder):
        digest.update(f"\0{name}\0{size}\0".encode())
        assert folder is not None
        with (folder / name).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return f"sha256:{digest.hexdigest()}"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class UnplacedRow(_Strict):
    """A localizer of a series that is not cached."""

    location: str
    reason: str
    detail: str
    row: int


class Record(_Strict):
    """
    Why a series is not cached, and what the tables say of it: rejected/<uid>.json.

    ``record_hash`` is that of all other entries; `Record.sealed` sets it.
    """

    series_uid: str
    status: Literal["rejected", "failed"]
    reason: str = Field(pattern=r"^[a-z0-9_]+$")
    detail: str
    modality: str
    modality_source: Literal["train.csv", ""]
    digest: str
    labels: dict[str, Literal[0, 1]] | None
    unplaced_lesions: list[UnplacedRow]
    record_hash: str = ""

    def sealed(self) -> Record:
        """Return the record with its hash."""
        content = self.model_dump(mode="json", exclude={"record_hash"})
        return self.model_copy(update={"record_hash": _hash_of(_canonical(content))})

    def to_json(self) -> str:
        """Return the text of the file."""
        return json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True) + "\n"


def read_record(path: Path) -> Record:
    """
    Return the record in the file ``path``.

    Raises
    ------
    FileNotFoundError
        There is none.
    CacheError
        It can't be read, or is not what was written: no JSON, another entry or type, or a hash that does not fit.
    """
    try:
        content = read_bounded(path, MOST_JSON)
        record = Record.model_validate_json(content)
    except FileNotFoundError:
        raise
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise CacheError(f"the record is damaged: {where}: {first['msg']}") from error
    except (OSError, ValueError) as error:
        raise CacheError(f"the record can't be read: {words_of(error)}") from error
    if path.name != f"{record.series_uid}.json":
        raise CacheError("the record is of another series")
    if record.sealed() != record or record.to_json().encode() != content:
        raise CacheError("the record was changed or damaged since it was written: its hash differs")
    return record
