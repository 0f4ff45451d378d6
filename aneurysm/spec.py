"""TOML file -> CacheSpec: an immutable recipe of a cache, and its digest."""

from __future__ import annotations

import hashlib
import json
import re
from importlib import resources
from pathlib import Path
from typing import Annotated, Final, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from aneurysm._version import __version__
from aneurysm.documents import MOST_TOML, format_problem, parse_toml, read_bounded
from aneurysm.errors import SpecError
from aneurysm.remote.url import is_url

RECIPE_VERSION: Final = 3
"""Stands in every digest. Raise it when a change of the arithmetic changes a voxel of some series."""
_HASH_LINE: Final = "# SHA-256 of all lines below: "
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Millimetres = Annotated[float, Field(gt=0.05, le=20.0)]
_Size = Annotated[float, Field(gt=1.0, le=2000.0)]
_ChunkEdge = Annotated[int, Field(ge=8, le=512)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


class CTIntensity(_Section):
    """How CT is stored: clipped to ``clip_hu``, in ``levels`` even steps; ``window_hu`` maps to [0, 1] for a model."""

    clip_hu: tuple[_Finite, _Finite]
    window_hu: tuple[_Finite, _Finite]
    levels: int = Field(ge=16, le=65536)

    @model_validator(mode="after")
    def _in_order(self) -> CTIntensity:
        for name, (low, high) in (("clip_hu", self.clip_hu), ("window_hu", self.window_hu)):
            if not low < high:
                raise ValueError(f"{name}: the lower bound {low:g} is not below the upper bound {high:g}")
        if self.window_hu[0] < self.clip_hu[0] or self.window_hu[1] > self.clip_hu[1]:
            raise ValueError("window_hu reaches beyond clip_hu: what was clipped can't be shown")
        return self


class MRIntensity(_Section):
    """
    How MR is stored: the head's ``percentiles`` set the scale, with ``headroom`` above the upper one.

    The head is what lies above ``foreground`` times the 99.5th percentile of the whole volume. The upper end of the
    model's window is low + (high - low) x (1 + headroom).
    """

    percentiles: tuple[_Finite, _Finite]
    headroom: float = Field(ge=0.0, le=10.0)
    foreground: float = Field(gt=0.0, lt=1.0)
    levels: int = Field(ge=16, le=65536)

    @model_validator(mode="after")
    def _in_order(self) -> MRIntensity:
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ValueError(f"percentiles: {low:g}, {high:g} are not two rising numbers from 0 to 100")
        return self


class ArrayIntensity(_Section):
    """How arrays without a modality are stored: clipped to ``window``, which maps to [0, 1], in ``levels`` steps."""

    window: tuple[_Finite, _Finite]
    levels: int = Field(ge=16, le=65536)

    @model_validator(mode="after")
    def _in_order(self) -> ArrayIntensity:
        low, high = self.window
        if not low < high:
            raise ValueError(f"window: the lower bound {low:g} is not below the upper bound {high:g}")
        return self


class IntensitySpec(_Section):
    """
    One entry for each value of DICOM's Modality, the only kind that is known at inference.

    ``array`` is for arrays that come without a modality; most specs have none.
    """

    CT: CTIntensity
    MR: MRIntensity
    array: ArrayIntensity | None = None


class StorageSpec(_Section):
    """How the array lies on disk. ``chunk`` is the inner chunk (z, y, x); one shard holds the whole volume."""

    dtype: Literal["int16", "uint8"]
    chunk: tuple[_ChunkEdge, _ChunkEdge, _ChunkEdge]
    codec: Literal["zstd", "lz4", "lz4hc"]
    level: int = Field(ge=1, le=9)
    shuffle: Literal["noshuffle", "shuffle", "bitshuffle"]


class SlicePolicy(_Section):
    """Within which limits a series is taken for one volume."""

    min_slices: int = Field(ge=2)
    max_gap_ratio: float = Field(ge=1.0, allow_inf_nan=False)
    max_gap_mm: float = Field(gt=0.0, allow_inf_nan=False)
    max_stray_fraction: float = Field(ge=0.0, lt=0.5)
    max_tilt_deg: float = Field(ge=0.0, le=60.0)
    max_misalignment_mm: float = Field(ge=0.0, allow_inf_nan=False)
    max_unreadable_fraction: float = Field(ge=0.0, lt=0.5)
    several_volumes: Literal["first", "reject"]


class Box(_Section):
    """A region of interest at the superior end of the volume, centred left to right and front to back."""

    anchor: Literal["superior"]
    size_mm: tuple[_Size, _Size, _Size]


class CacheSpec(_Section):
    """
    The resolved recipe. ``spacing_mm`` and every other triple is in (z, y, x): superior, posterior, left.

    ``recipe`` is the `RECIPE_VERSION` of whoever resolved it: this program, unless it was read from a cache or a
    checkpoint.
    """

    recipe: int = Field(default_factory=lambda: RECIPE_VERSION, ge=1)
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    version: int = Field(ge=1)
    description: str = ""
    spacing_mm: tuple[_Millimetres, _Millimetres, _Millimetres]
    frame: Literal["closest"]
    region: Box | None = None
    max_voxels: int = Field(ge=1000)
    intensity: IntensitySpec
    storage: StorageSpec
    slices: SlicePolicy
    _written_digest: str = PrivateAttr("")
    """What the text says that this was read from, where it is not what `_own_digest` makes of it."""

    @model_validator(mode="after")
    def _levels_fit(self) -> CacheSpec:
        most = 256 if self.storage.dtype == "uint8" else 65536
        for name, entry in self.intensity:
            if entry is not None and entry.levels > most:
                raise ValueError(f"intensity.{name}.levels: {entry.levels} do not fit {self.storage.dtype}")
        return self

    @property
    def digest(self) -> str:
        """Hash of all that changes a voxel; the description is not part of it. Once written, it is what is written."""
        return self._written_digest or self._own_digest()

    def _own_digest(self) -> str:
        content = self.model_dump(mode="json", exclude={"description"})
        if self.intensity.array is None:
            del content["intensity"]["array"]  # caches that are older than this entry keep their digest
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def with_digest(self, written: str) -> CacheSpec:
        """Return this spec with the digest of the text that it was read from."""
        spec = self.model_copy()
        spec._written_digest = written if written != self._own_digest() else ""  # noqa: SLF001 - of this class
        return spec

    def mismatch(self) -> str:
        """Return why this program would not make the voxels that this spec stands for; empty if it would."""
        program = f"this is aneurysm {__version__} of recipe {RECIPE_VERSION}"
        if self.recipe != RECIPE_VERSION:
            return f"it is of recipe {self.recipe} (digest {self.digest}), and {program}, which makes other voxels"
        if self._written_digest:
            return (
                f"it says digest {self._written_digest}, and {program}, by which its keys have digest "
                f"{self._own_digest()}: it was edited, or comes from another release"
            )
        return ""

    def to_toml(self) -> str:
        """Return the resolved spec as TOML; `parse_spec` gives it back."""
        content = {"recipe": self.recipe, "digest": self.digest}
        body = tomli_w.dumps(content | self.model_dump(mode="json", exclude_none=True))
        lines = [
            "# The resolved spec.",
            "# It describes what is here: editing it changes nothing but the check against it.",
            _HASH_LINE + hashlib.sha256(body.encode()).hexdigest(),
        ]
        return "\n".join(lines) + "\n" + body


def is_as_written(text: str) -> bool:
    """Return True if ``text`` is what `CacheSpec.to_toml` wrote, comments apart."""
    comments, _, after = text.partition(_HASH_LINE)
    known, _, body = after.partition("\n")
    return hashlib.sha256(body.encode()).hexdigest() == known and all(
        line.startswith("#") for line in comments.splitlines()
    )


def shipped_specs() -> list[str]:
    """Return the names of the specs that come with the package."""
    return sorted(
        p.name.removesuffix(".toml")
        for p in resources.files("aneurysm.cache_specs").iterdir()
        if p.name.endswith(".toml")
    )


def load_spec(name_or_path: str | Path) -> CacheSpec:
    """
    Load a shipped spec by name, or one of your own by path or URL (a value with a slash or the ending ``.toml``).

    Raises
    ------
    SpecError
        No such spec; not TOML; an unknown key or an impossible value: the message names the file and the key. Or it is
        a resolved one, of another recipe than this program's.
    """
    spec = _load(name_or_path)
    if what := spec.mismatch():
        raise SpecError(
            f"the spec {name_or_path} can't be used: {what}. Go on with the release that wrote it; or give this one "
            "another folder with --cache, and a spec without the keys recipe and digest"
        )
    return spec


def _load(name_or_path: str | Path) -> CacheSpec:
    text = str(name_or_path)
    if isinstance(name_or_path, str) and "/" not in text and not text.endswith(".toml"):
        if text not in shipped_specs():
            raise SpecError(
                f"there is no cache spec {text!r}. Shipped: {', '.join(shipped_specs())}. For one of your own give its "
                f"path, for example ./{text}.toml"
            )
        return parse_spec((resources.files("aneurysm.cache_specs") / f"{text}.toml").read_text("utf-8"), f"{text}.toml")
    if is_url(text):
        from aneurysm.remote.client import ObjectStore

        folder, _, name = text.rpartition("/")
        try:
            return parse_spec(ObjectStore(folder).read(name).decode("utf-8"), text)
        except (FileNotFoundError, UnicodeDecodeError) as error:
            raise SpecError(f"the spec {text} can't be read: {error}") from error
    path = Path(text)
    try:
        content = read_bounded(path, MOST_TOML).decode("utf-8")
    except FileNotFoundError as error:
        raise SpecError(f"there is no spec file {path}") from error
    except (OSError, ValueError) as error:
        raise SpecError(f"the spec file {path} can't be read: {error}") from error
    return parse_spec(content, str(path))


def parse_spec(content: str, source: str, *, resolved: bool = False) -> CacheSpec:
    """
    Parse TOML text; ``source`` is what error messages call it.

    It may be of another recipe: see `CacheSpec.mismatch`. One that is ``resolved`` must say of which.

    Raises
    ------
    SpecError
        It is not a spec.
    """
    try:
        table = parse_toml(content)
    except ValueError as error:
        raise SpecError(f"{source} is not valid TOML: {error}") from error
    written = table.pop("digest", "")
    if not isinstance(written, str) or not re.fullmatch("[0-9a-f]{16}|", written):
        raise SpecError(f"{source}: digest: {str(written)[:40]!a} is none")
    if bool(written) != ("recipe" in table) or (resolved and not written):
        raise SpecError(f"{source}: the keys recipe and digest are missing, or one of them")
    try:
        spec = CacheSpec.model_validate(table)
        return spec.with_digest(written) if written else spec
    except ValidationError as error:
        # An unknown key first: it is often the missing one, misspelt.
        first, *others = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        more = f" ({len(others)} more keys are wrong)" if others else ""
        raise SpecError(f"{source}: {format_problem(dict(first))}{more}") from error
