"""Routing: the modality of a series -> the models that answer for it, and the cache spec that they take.

A model answers for the modalities that it was trained on. Headers don't always tell the kind: of a series without a
description it may be known that it is an MR, and no more. For such a series all answer that know any kind of MR, and a
model that was trained on such series answers for every kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from aneurysm.errors import Reason, SeriesRejectedError
from aneurysm.labels import UNKNOWN_MODALITY
from aneurysm.spec import CacheSpec

_FAMILIES: Final = ("CT", "MR")
"""What is said where the kind is not known; the names of the kinds begin so."""


@dataclass(frozen=True)
class Route:
    """
    What one model, or several that are averaged, takes and answers for.

    Attributes
    ----------
    spec
        Of the volumes.
    modalities
        Names as in a manifest; None: whatever it is.
    windows
        What else those have in common that are averaged window by window.
    """

    spec: CacheSpec
    modalities: tuple[str, ...] | None = None
    windows: tuple[object, ...] = ()

    def knows(self, modality: str) -> bool:
        """Return True if the model was trained on series of a modality, or on such as may have been of it."""
        return self.modalities is None or any(_may_be(modality, known) for known in self.modalities)

    @property
    def takes_dicom(self) -> bool:
        """Whether it answers for anything but arrays without a modality."""
        return self.modalities is None or bool(set(self.modalities) - {UNKNOWN_MODALITY})


@dataclass(frozen=True)
class Routing:
    """
    The models that there are, by number. It is small, and goes to the processes that read series.

    Attributes
    ----------
    routes
        One of each model.
    """

    routes: tuple[Route, ...]

    def models(self, modality: str) -> tuple[int, ...]:
        """
        Return the numbers of the models that answer for a modality, which all take the same windows of one spec.

        Raises
        ------
        SeriesRejectedError
            There is none; or the modality is but a family's name, and those that know its kinds don't go together.
        """
        models = tuple(i for i, route in enumerate(self.routes) if route.knows(modality))
        if not models:
            raise SeriesRejectedError(
                Reason.NO_MODEL,
                f"its modality is {modality}; the models were trained on {', '.join(self.modalities)}",
            )
        if len({(self.routes[i].spec.digest, self.routes[i].windows) for i in models}) > 1:
            raise SeriesRejectedError(
                Reason.NO_MODEL,
                f"its modality is {modality}, of which kind is not told; the models that know a kind take volumes of "
                "different cache specs, or different windows of them",
            )
        return models

    def spec(self, modality: str) -> CacheSpec:
        """Return the cache spec of the models that answer for a modality. Raises as `models` does."""
        return self.routes[self.models(modality)[0]].spec

    @property
    def modalities(self) -> list[str]:
        """What any of the models was trained on, as far as it says so."""
        return sorted({modality for route in self.routes for modality in route.modalities or ()})

    @property
    def takes_dicom(self) -> bool:
        """Whether any of the models answers for DICOM."""
        return any(route.takes_dicom for route in self.routes)


def groups_of(routes: Sequence[Route]) -> list[tuple[int, ...]]:
    """Return each set of models, by number, that answers together for some modality which they were trained on."""
    known = {modality for route in routes for modality in route.modalities or ("",)}
    groups = {tuple(i for i, route in enumerate(routes) if route.knows(modality)) for modality in known}
    return sorted(group for group in groups if group)


def _may_be(modality: str, known: str) -> bool:
    return modality == known or any(
        family in (modality, known) and modality.startswith(family) and known.startswith(family) for family in _FAMILIES
    )
