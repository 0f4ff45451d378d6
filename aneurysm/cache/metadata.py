"""zarr.json of a volume, and the record of a series without one: their content as typed models, and their hashes.

`VolumeMetadata` is the group attribute ``aneurysm``. It is written and read here alone, as a part of a
`VolumeDocument`, the whole of zarr.json; docs/cache.md explains each entry.

A volume has two parts, each with a hash of its own:

- ``voxel_hash``: the files of array `0`, and all of zarr.json that is no annotation. It never changes once the volume
  is built; two volumes of one series and spec have the same.
- ``annotation_hash``: the entries `ANNOTATIONS`, and the decisions on the vessel mask. Tables and masks are corrected,
  and these follow (`aneurysm.precaching.relabel`). The files of labels have a hash within the entries. Where bone is
  is among them, since it follows from the voxels, and changes with the version of what finds it while they stay.

What built the volume (``built_by``) is in neither of them, and has a hash of its own; see `aneurysm.cache.builder`.

All hashes are of parsed content. That the bytes of zarr.json are exactly those that its content is written as is
checked beside them (`find_damage`): a changed space or a digit beyond a float's precision changes no content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from aneurysm.annotations.frames import PackedFrames
from aneurysm.annotations.lesions import Lesion, UnplacedLesion
from aneurysm.cache.builder import builder_hash
from aneurysm.cache.layout import FORMAT_VERSION, IMAGE, LABELS_TREE
from aneurysm.dicom.frame import Decision
from aneurysm.documents import MOST_JSON, read_bounded
from aneurysm.errors import CacheError, DamagedCacheError, words_of
from aneurysm.processes.files import tree_files
from aneurysm.types import Point, Triple, point
from aneurysm.volume.blocks import Blocks, PackedSurvey, Survey, unpack_bits
from aneurysm.volume.intensity import Intensity

ANNOTATIONS: Final = frozenset(
    {"modality", "modality_source", "labels", "lesions", "unplaced_lesions", "vessel_mask", "bone", "patient_key"}
)
"""Fields of `VolumeMetadata` that are annotations."""
_HASHES: Final = frozenset({"voxel_hash", "annotation_hash", "builder_hash"})
_NO_VOXELS: Final = ANNOTATIONS | _HASHES | {"built_by", "format_version"}
"""Fields of `VolumeMetadata` that say nothing of the voxels."""
_MASK_DECISION: Final = "mask_"
_OWN: Final = ("attributes", "aneurysm")

_CellEdge = Annotated[int, Field(ge=1, le=64)]
_Row = tuple[float, float, float, float]
_Affine = tuple[_Row, _Row, _Row, _Row]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    absent: ClassVar[frozenset[str]] = frozenset()
    """Fields that are left out of JSON where they are None: entries that only some volumes have."""

    @model_serializer(mode="wrap")
    def _without_absent(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = serialize(self)
        return {k: v for k, v in content.items() if v is not None or k not in self.absent}


class GridEntry(_Model):
    """A grid: an affine ((z, y, x, 1) to LPS mm) and its voxels along (z, y, x)."""

    affine_lps: _Affine
    shape: Triple


class PartEntry(_Model):
    """A block of slices of one geometry: slices, rows and columns, and the distances between them in mm."""

    shape: Triple
    spacing_mm: Point
    orientation: tuple[float, float, float, float, float, float]
    plane: str
    tilt_deg: float


class SourceEntry(_Model):
    """
    What a volume was made of.

    ``modality`` is what the DICOM tags say, and ``field_of_view`` the grid of all slices. An array has neither, but
    ``array_hash``, the hash of its values. The five facts of geometry are those of `PartEntry`.
    """

    absent = frozenset({"array_hash", "modality", "field_of_view"})

    array_hash: str | None = None
    modality: str | None = None
    shape: Triple
    spacing_mm: Point
    orientation: Annotated[tuple[float, ...], Field(min_length=6, max_length=9)]
    plane: str
    tilt_deg: float
    other_parts: tuple[PartEntry, ...]
    field_of_view: GridEntry | None = None
    transfer_syntaxes: tuple[str, ...]
    files: int
    frames: int
    bytes: int
    acquisition: dict[str, JsonValue]


class MaskEntry(_Model):
    """
    The vessel mask. ``path`` is None if there was a file that can't be used.

    ``file_hash`` is of the file that it was made of, ``content_hash`` of the files of all labels in the volume;
    ``blocks`` are the packed bits of the blocks that hold a vessel.
    """

    path: Literal["labels/vessels/0", "labels.next/vessels/0"] | None
    file_hash: str
    content_hash: str
    blocks: str


class BoneEntry(_Model):
    """
    Where bone is: 1 in the array at ``path``, by cells of ``edge`` voxels along (z, y, x).

    ``version`` is the `aneurysm.volume.bone.BONE_VERSION` that found it, ``content_hash`` as in `MaskEntry`.
    """

    path: Literal["labels/bone/0", "labels.next/bone/0"]
    version: int
    edge: tuple[_CellEdge, _CellEdge, _CellEdge]
    content_hash: str


class VolumeMetadata(_Model):
    """
    The group attribute ``aneurysm`` of a volume.

    ``labels`` are by name, None if nothing is known; ``lesions`` are those that have a voxel, ``unplaced_lesions`` the
    rows of tables without one, each with a reason. ``built_by`` are the versions of what built it, by name.
    """

    absent = frozenset({"images", "bone"})

    format_version: Literal[4] = FORMAT_VERSION
    affine_lps: _Affine
    series_uid: str
    modality: str
    modality_source: Literal["train.csv", "dicom", "array"]
    spec: str
    digest: str
    source: SourceEntry
    images: PackedFrames | None = None
    decisions: tuple[Decision, ...]
    labels: dict[str, Literal[0, 1]] | None
    lesions: tuple[Lesion, ...]
    unplaced_lesions: tuple[UnplacedLesion, ...]
    patient_key: str
    intensity: Intensity
    blocks: PackedSurvey
    vessel_mask: MaskEntry | None = None
    bone: BoneEntry | None = None
    built_by: dict[str, str] = Field(default_factory=dict)
    voxel_hash: str = ""
    annotation_hash: str = ""
    builder_hash: str = ""

    @property
    def affine(self) -> NDArray[np.float64]:
        """(4, 4): (z, y, x, 1) to (x, y, z, 1) in LPS mm, voxel centres."""
        return np.array(self.affine_lps)

    @property
    def spacing_mm(self) -> Point:
        """Of the voxels, along (z, y, x): a whole number of nanometres, which the affine's floats miss a little."""
        return point(np.linalg.norm(self.affine[:3, :3], axis=0).round(6))

    @property
    def mask_path(self) -> str | None:
        """Where in the volume its vessel mask is; None if it has none."""
        return None if self.vessel_mask is None else self.vessel_mask.path

    @property
    def label_paths(self) -> list[str]:
        """Where in the volume its labels are: of its vessel mask and of bone, as far as it has them."""
        return [path for path in (self.mask_path, self.bone and self.bone.path) if path]

    @property
    def labels_tree(self) -> str | None:
        """The folder in which its labels are; None if it has none."""
        return next((path.split("/", 1)[0] for path in self.label_paths), None)

    def labels_in(self, tree: str, content_hash: str | None = None) -> dict[str, MaskEntry | BoneEntry | None]:
        """Return the entries of the labels as they are in the folder ``tree``, with another hash if one is given."""
        changes: dict[str, MaskEntry | BoneEntry | None] = {}
        for name, entry in (("vessel_mask", self.vessel_mask), ("bone", self.bone)):
            if entry is not None and entry.path:
                new = {"path": f"{tree}/{entry.path.split('/', 1)[1]}"}
                entry = entry.model_copy(update=new if content_hash is None else new | {"content_hash": content_hash})
            changes[name] = entry
        return changes

    @property
    def mask_file_hash(self) -> str:
        """Hash of the file that the vessel mask was made of, or could not be made of; empty if there was none."""
        return "" if self.vessel_mask is None else self.vessel_mask.file_hash

    def head_and_vessels(self) -> Blocks:
        """Return which blocks hold head and which vessels. Raises `ValueError` if the packed bits are damaged."""
        survey = Survey.unpack(self.blocks)
        mask = self.vessel_mask
        bits = unpack_bits(mask.blocks, survey.head.shape) if mask is not None and mask.path else None
        return survey.blocks(self.modality, bits)


class _Attributes(_Model):
    model_config = ConfigDict(extra="allow")  # other programs may add theirs, which the hash of the voxels shows

    ome: dict[str, JsonValue]
    aneurysm: VolumeMetadata


class VolumeDocument(_Model):
    """The content of a volume's zarr.json: OME's metadata, and ours."""

    model_config = ConfigDict(extra="allow")

    attributes: _Attributes
    zarr_format: Literal[3] = 3
    node_type: Literal["group"] = "group"

    @classmethod
    def of(cls, ome: dict[str, Any], own: VolumeMetadata) -> VolumeDocument:
        """Return a document that is not sealed yet."""
        return cls(attributes=_Attributes(ome=ome, aneurysm=own))

    @property
    def own(self) -> VolumeMetadata:
        """The attribute ``aneurysm``."""
        return self.attributes.aneurysm

    def with_changes(self, **changes: Any) -> VolumeDocument:
        """Return the document with other annotations, and their hash."""
        own = self.own.model_copy(update=changes)
        own = own.model_copy(update={"annotation_hash": annotation_hash(own)})
        return self.model_copy(update={"attributes": self.attributes.model_copy(update={"aneurysm": own})})

    def sealed(self, folder: Path) -> VolumeDocument:
        """Return the document with all hashes, of a volume whose arrays are in ``folder``. Raises `OSError`."""
        # As JSON gives it back: the hash must not depend on whether a number was numpy's.
        content = VolumeDocument.model_validate_json(self.to_bytes())
        hashes = {"voxel_hash": voxel_hash(folder, content), "builder_hash": builder_hash(content.own.built_by)}
        own = content.own.model_copy(update=hashes)
        attributes = content.attributes.model_copy(update={"aneurysm": own})
        return content.model_copy(update={"attributes": attributes}).with_changes()

    def to_bytes(self) -> bytes:
        """Return the bytes of zarr.json."""
        return document_bytes(_plain(self))


def document_bytes(document: dict[str, Any]) -> bytes:
    """Return the bytes of a zarr.json whose content is ``document``."""
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()


def read_document(volume: Path) -> VolumeDocument:
    """Return the content of a volume's zarr.json. Raises as `parse_document` and `read_document_bytes` do."""
    return parse_document(read_document_bytes(volume), str(volume / "zarr.json"))


def read_document_bytes(volume: Path) -> bytes:
    """Return the bytes of a volume's zarr.json. Raises `CacheError` if it is missing, can't be read, or is too long."""
    path = volume / "zarr.json"
    try:
        return read_bounded(path, MOST_JSON)
    except FileNotFoundError as error:
        raise CacheError(f"{path} is missing") from error
    except (OSError, ValueError) as error:
        raise CacheError(f"{path} is damaged: {type(error).__name__} {error}") from error


def parse_document(content: bytes, name: str) -> VolumeDocument:
    """
    Return the content of zarr.json, which errors call ``name``.

    Raises
    ------
    DamagedCacheError
        It is no JSON, of another format version, or lacks an entry or has one of another type.
    """
    try:
        return VolumeDocument.model_validate_json(content, strict=True)
    except ValidationError as error:
        raise DamagedCacheError(f"{name} {_first_fault(error)}") from error


def _first_fault(error: ValidationError) -> str:
    """Return what is wrong with metadata: no volume of ours, another format, what is missing, or the first fault."""
    faults = error.errors(include_url=False)
    inner = [(".".join(str(part) for part in fault["loc"][2:]), fault) for fault in faults]
    if any(fault["type"] == "missing" and fault["loc"] in (("attributes",), _OWN) for fault in faults):
        return "lacks the attribute aneurysm: it is no volume of a cache, or damaged"
    for name, fault in inner:
        if name == "format_version":
            return f"is of format version {str(fault['input'])[:20]}, this program knows {FORMAT_VERSION}"
    if missing := [name for name, fault in inner if fault["type"] == "missing" and name]:
        return f"is damaged: the metadata lacks {', '.join(sorted(missing))}"
    name, fault = inner[0]
    return f"is damaged: {name or '.'.join(str(part) for part in fault['loc']) or 'the file'}: {fault['msg']}"


def is_mask_decision(decision: Decision) -> bool:
    """Return True if a decision is on the vessel mask, and so a part of the annotations."""
    return decision.code.startswith(_MASK_DECISION)


def voxel_hash(folder: Path, document: VolumeDocument) -> str:
    """
    Return the hash of the voxels in ``folder``, a volume, and of all that ``document`` (its zarr.json) says of them.

    Raises
    ------
    OSError
        A file can't be read.
    """
    content = _plain(document)
    own = {k: v for k, v in content["attributes"]["aneurysm"].items() if k not in _NO_VOXELS}
    own["decisions"] = [_plain_decision(d) for d in document.own.decisions if not is_mask_decision(d)]
    return _hash_of(_canonical({**content, "attributes": {**content["attributes"], "aneurysm": own}}), folder / IMAGE)


def annotation_hash(own: VolumeMetadata) -> str:
    """Return the hash of the annotations in ``own``."""
    # While labels are replaced, the new ones stand in another place.
    own = own.model_copy(update=own.labels_in(LABELS_TREE))
    content = {k: v for k, v in _plain(own).items() if k in ANNOTATIONS}
    content["decisions"] = [_plain_decision(d) for d in own.decisions if is_mask_decision(d)]
    return _hash_of(_canonical(content))


def files_hash(folder: Path) -> str:
    """Return the hash of all files in ``folder`` and below, and of their names. Raises `OSError`."""
    return _hash_of(b"", folder)


def find_damage(folder: Path, document: VolumeDocument, content: bytes) -> Iterator[str]:
    """
    Yield what is not as it was written in ``folder``, a volume whose zarr.json is ``content``, parsed ``document``.

    Raises
    ------
    OSError
        A file can't be read.
    """
    own = document.own
    if own.voxel_hash != voxel_hash(folder, document):
        yield "voxel hash differs: a file or the metadata was changed or damaged since it was written"
    if own.annotation_hash != annotation_hash(own):
        yield "annotation hash differs: the metadata were changed or damaged since they were written"
    elif own.builder_hash != builder_hash(own.built_by):
        yield "builder hash differs: the versions that built it were changed or damaged since they were written"
    elif content != document.to_bytes():
        yield "zarr.json was changed or damaged since it was written"
    if (tree := own.labels_tree) is not None:
        labels = [entry for entry in (own.vessel_mask, own.bone) if entry is not None and entry.path]
        if not (folder / tree).is_dir():
            yield "the folder of labels is lost"
        elif {files_hash(folder / tree)} != {label.content_hash for label in labels}:
            yield "content hash of the labels differs: a file was changed or damaged since it was written"


def find_strays(folder: Path, document: VolumeDocument) -> Iterator[str]:
    """Yield the names in ``folder``, a volume, that are no part of it. Raises `OSError`."""
    known = {"zarr.json", IMAGE, document.own.labels_tree}
    yield from sorted(path.name for path in folder.iterdir() if path.name not in known)


def _plain(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json")


def _plain_decision(decision: Decision) -> dict[str, str]:
    return {"code": decision.code, "detail": decision.detail}


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


class Record(_Model):
    """
    Why a series is not cached, and what the tables say of it: see `aneurysm.cache.layout.record_key`.

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
    unplaced_lesions: tuple[UnplacedLesion, ...]
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
        record = Record.model_validate_json(content, strict=True)
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
