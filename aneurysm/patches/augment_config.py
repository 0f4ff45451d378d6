"""AugmentConfig: how often, and how strongly, patches are changed at random."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator


def _rising(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError(f"the lower bound {bounds[0]:g} is above the upper bound {bounds[1]:g}")
    return bounds


_Chance = Annotated[float, Field(ge=0.0, le=1.0)]
_Degrees = Annotated[float, Field(ge=0.0, le=180.0)]
_Fraction = Annotated[float, Field(ge=0.0, le=0.5)]
_NotNegative = Annotated[float, Field(ge=0.0, le=100.0)]
_Positive = Annotated[float, Field(ge=0.05, le=20.0)]
_Amounts = Annotated[tuple[_NotNegative, _NotNegative], AfterValidator(_rising)]
_Factors = Annotated[tuple[_Positive, _Positive], AfterValidator(_rising)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Flip(_Section):
    """
    Chances of mirroring. A left-right flip swaps the labels of the sides, and doubles the data.

    ``labels`` "keep" leaves the labels where they were, as some published systems do: to reproduce those, for nothing
    else. The others make heads that nobody has, for the cache stores every volume the same way up.
    """

    left_right: _Chance = 0.5
    labels: Literal["swap", "keep"] = "swap"
    front_back: _Chance = 0.0
    up_down: _Chance = 0.0


class Affine(_Section):
    """
    Rotation, scale and shear about the patch's centre, in mm.

    Rotation about the (z, y, x) axes is at most this many degrees either way. ``scale`` multiplies all axes alike;
    then each axis is scaled, and each pair of axes sheared, by at most the given fraction more or less.
    ``shift_mm`` moves pictures of a series by at most so much along each axis; a patch has its place at random already.
    """

    p: _Chance = 0.5
    rotation_deg: tuple[_Degrees, _Degrees, _Degrees] = (15.0, 15.0, 15.0)
    scale: _Factors = (0.85, 1.2)
    anisotropy: _Fraction = 0.05
    shear: _Fraction = 0.05
    shift_mm: _NotNegative = 10.0


class Elastic(_Section):
    """
    Smooth bending: control points every ``spacing_mm``, each moved along each axis by at most ``max_mm``.

    Voxels between them follow cubic B-splines, and move less: about a fifth of ``max_mm`` per axis (RMS).
    """

    p: _Chance = 0.0
    spacing_mm: float = Field(32.0, ge=4.0, le=500.0)
    max_mm: float = Field(4.0, ge=0.0)

    @model_validator(mode="after")
    def _has_an_inverse(self) -> Elastic:
        # No derivative of a cubic B-spline exceeds 2 max / spacing, so three axes together change the displacement by
        # at most 6 / 8 of a step: nothing folds, and the inverse can be found by iteration.
        if self.max_mm > self.spacing_mm / 8:
            raise ValueError(f"max_mm = {self.max_mm:g} is more than an eighth of spacing_mm = {self.spacing_mm:g}")
        return self


class Window(_Section):
    """
    Brightness and contrast, as a reader changes them: by moving and stretching the window.

    ``shift`` is at most this many window widths either way; ``width`` multiplies the width about the window's centre.
    """

    p: _Chance = 0.5
    shift: _Fraction = 0.1
    width: _Factors = (0.75, 1.33)


class Gamma(_Section):
    """Raises model units, which lie in [0, 1], to a power."""

    p: _Chance = 0.3
    power: _Factors = (0.7, 1.5)


class Noise(_Section):
    """Noise of each voxel: Gaussian in CT, Rician in MR. ``sigma`` is a fraction of the window's width."""

    p: _Chance = 0.2
    sigma: _Amounts = (0.0, 0.05)


class Blur(_Section):
    """Gaussian blur."""

    p: _Chance = 0.1
    sigma_mm: _Amounts = (0.3, 1.0)


class LowResolution(_Section):
    """
    Slices of ``slice_mm`` along one axis, as a scanner averages over their thickness, then back to the patch's grid.

    ``axis_odds``: how often they lie across the (z, y, x) axis; nearly all series of the head are axial.
    """

    p: _Chance = 0.15
    slice_mm: _Factors = (1.5, 5.0)
    axis_odds: tuple[_NotNegative, _NotNegative, _NotNegative] = (8.0, 1.0, 1.0)

    @model_validator(mode="after")
    def _some_axis(self) -> LowResolution:
        if not any(self.axis_odds):
            raise ValueError("axis_odds: all are 0")
        return self


class Inversion(_Section):
    """Bright vessels become flow voids and the reverse, air stays dark. MR only: CT knows no flow voids."""

    p: _Chance = 0.05


class AugmentConfig(_Section):
    """
    What `aneurysm.patches.augment.augment` does; ``p`` is always the chance per patch.

    The defaults are for angiography of the head at 0.5 to 1 mm. Unknown keys are errors (`pydantic.ValidationError`).
    """

    flip: Flip = Flip()
    affine: Affine = Affine()
    elastic: Elastic = Elastic()
    window: Window = Window()
    gamma: Gamma = Gamma()
    noise: Noise = Noise()
    blur: Blur = Blur()
    low_resolution: LowResolution = LowResolution()
    inversion: Inversion = Inversion()

    @classmethod
    def off(cls) -> AugmentConfig:
        """Return the configuration that changes nothing: for validation."""
        return cls(
            flip=Flip(left_right=0.0),
            affine=Affine(p=0.0),
            elastic=Elastic(p=0.0),
            window=Window(p=0.0),
            gamma=Gamma(p=0.0),
            noise=Noise(p=0.0),
            blur=Blur(p=0.0),
            low_resolution=LowResolution(p=0.0),
            inversion=Inversion(p=0.0),
        )
