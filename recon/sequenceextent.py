"""Field of view and resolution of a sequence: what its definitions or the header say, and its trajectory supports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recon.mrdencoding import extent

PLACES = 4000  # of k-space at which gaps are looked for
INNER = 0.9  # of the largest |k|: beyond it, an arm's end is no gap
MOST_GAPS = 99  # percentile of the distances from any place to the nearest sample that counts as half a gap
FEWEST_PIXELS = 8  # a field of view with fewer is none: the arms do not cover k-space
SAME_EXTENT = 0.01  # relative difference of two fields of view that are one
SUPPORTED = 0.7  # of a field of view, that a trajectory designed for it supports at least if its arms are complete
AGREEMENT = 2.0  # factor between a defined resolution and that of the largest |k| at most
RESOLUTION_NAMES = ("resolution_mm", "resolution", "spatialresolution", "spatial_resolution", "res")
MATRIX_NAMES = ("matrixsize", "matrix_size", "matrix", "nx")


def defined_field_of_view(definitions: Mapping[str, Any]) -> float:
    """Field of view of the definition FOV [m], the larger of x and y; NaN without one.

    The format asks for metres; older toolboxes wrote millimetres.
    """
    values = _numbers(definitions, ("fov",))[:2]
    if not values.size:
        return math.nan
    largest = float(values.max())
    return 1e-3 * largest if largest > 1 else largest


def defined_resolution(definitions: Mapping[str, Any], field_of_view: float, largest: float) -> float:
    """Resolution of the definitions [m]; NaN without one, or where the largest |k| contradicts it.

    There is no definition that all authors use. Of the known names and of metres and millimetres, the one counts whose
    resolution is near 1 / (2 `largest`).

    Parameters
    ----------
    definitions
        Of the sequence.
    field_of_view
        [m], for a defined matrix size; may be NaN.
    largest
        Largest |k| [1/m].
    """
    candidates = [scale * value for value in _numbers(definitions, RESOLUTION_NAMES)[:1] for scale in (1.0, 1e-3)]
    candidates += [field_of_view / value for value in _numbers(definitions, MATRIX_NAMES)[:1]]
    fitting = [each for each in candidates if 1 / AGREEMENT <= 2 * largest * each <= AGREEMENT]
    return fitting[0] if fitting else math.nan


def supported_field_of_view(k: NDArray[np.float64]) -> float:
    """Field of view that samples lie densely enough for [m]: 1 / the widest gap of k-space; NaN if it is not covered.

    Half of the gap is the distance from a place in k-space to the nearest sample, at nearly all of some random places.

    Parameters
    ----------
    k
        K-space [arm, sample, (kx, ky)] [1/m].
    """
    from scipy.spatial import cKDTree

    samples = k.reshape(-1, 2)
    largest = float(np.linalg.norm(samples, axis=-1).max())
    random = np.random.default_rng(0)
    radius = INNER * largest * np.sqrt(random.random(PLACES))
    angle = 2 * np.pi * random.random(PLACES)
    distance, _ = cKDTree(samples).query(np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1))
    field_of_view = 0.5 / float(np.percentile(distance, MOST_GAPS))
    return field_of_view if 2 * largest * field_of_view >= FEWEST_PIXELS else math.nan


def designed_field_of_view(k: NDArray[np.float64], encoding: Any) -> float:
    """Field of view that a trajectory in the readouts was designed for [m], by the header; it is that of the density.

    That is the encoded field of view, not that of the image, which may be another part of the plane. Readout
    oversampling enlarges it along one axis, so that the smaller extent counts, or along both: then the trajectory
    supports less of it.

    Parameters
    ----------
    k
        K-space [arm, sample, (kx, ky)] [1/m].
    encoding
        The header's, with a field of view of reconSpace.
    """
    encoded, shown = (
        min((value for axis in "xy" if (value := 1e-3 * extent(space.fieldOfView_mm, axis))), default=math.nan)
        for space in (encoding.encodedSpace, encoding.reconSpace)
    )
    if not math.isfinite(encoded):
        return shown
    if shown < (1 - SAME_EXTENT) * encoded and not supported_field_of_view(k) > SUPPORTED * encoded:
        return shown
    return encoded


def _numbers(definitions: Mapping[str, Any], names: tuple[str, ...]) -> NDArray[np.float64]:
    """Positive numbers of the first of some definitions, named without regard to case, that has any."""
    by_name = {str(name).lower(): value for name, value in definitions.items()}
    for name in names:
        values = np.atleast_1d(by_name.get(name, math.nan))
        if values.dtype.kind in "iuf" and np.isfinite(values).all() and (values > 0).all():
            return values.astype(float)
    return np.array([])
