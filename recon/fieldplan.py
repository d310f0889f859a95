"""Non-uniform Fourier transforms in a field that is off, by a sum of terms; see `fieldterms`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recon.arrays import array_module

if TYPE_CHECKING:
    from recon.fieldcorrection import Correction


class FieldPlan:
    """The transforms of a plan, with field terms; used as the plan itself.

    Its grids hold each coil once for each term, all coils of the first term first.

    Parameters
    ----------
    plan
        Without field errors.
    spatial
        c_l, complex64 [term, row, column].
    temporal
        b_l, complex64 [arm, term, sample]; a single arm stands for all.
    """

    def __init__(self, plan: Any, spatial: NDArray[np.complex64], temporal: NDArray[np.complex64]) -> None:
        self._plan, self.temporal = plan, temporal
        self.shape, self.device = plan.shape, plan.device
        with plan.device():
            self.spatial = array_module(plan.zeros(1)).asarray(spatial)

    @property
    def terms(self) -> int:
        """Number of terms."""
        return len(self.spatial)

    def of_arm(self, arm: int) -> NDArray[np.complex64]:
        """b_l of an arm [term, sample]."""
        return self.temporal[arm if len(self.temporal) > 1 else 0]

    def grid_bytes(self, coils: int) -> int:
        """Memory of one grid [bytes]."""
        return self._plan.grid_bytes(coils * self.terms)

    def zeros(self, coils: int) -> Any:
        """Return an empty grid for `add_arm`."""
        return self._plan.zeros(coils * self.terms)

    def add_arm(self, grid: Any, arm: int, data: Any) -> None:
        """Add one arm's samples [coil, sample] to a grid of `zeros`."""
        weighted = self.of_arm(arm).conj()[:, np.newaxis] * data
        self._plan.add_arm(grid, arm, weighted.reshape(-1, data.shape[-1]))

    def image(self, grid: Any) -> Any:
        """Return the images [coil, row, column] of a grid; the grid stays as it is."""
        images = self.term_images(grid)
        with self.device():
            return combined(images, self.spatial)

    def forward(self, images: Any, arms: NDArray[np.intp]) -> NDArray[np.complex64]:
        """Return the samples [arm, coil, sample] of images [coil, row, column] on some of the arms.

        The plan's own `forward` has to return this order.
        """
        with self.device():
            weighted = (self.spatial[:, np.newaxis] * images).reshape(-1, *self.shape)
        taken = self._plan.forward(weighted, arms)
        taken = taken.reshape(len(arms), self.terms, -1, taken.shape[-1])
        of_arms = self.temporal[arms] if len(self.temporal) > 1 else self.temporal
        return (taken * of_arms[:, :, np.newaxis]).sum(axis=1)

    def term_images(self, grid: Any) -> Any:
        """Return the images [term, coil, row, column] of a grid, which `combined` makes one of."""
        images = self._plan.image(grid)
        return images.reshape(self.terms, -1, *self.shape)


def with_fields(plan: Any, correction: Correction | None, arms: NDArray[np.intp] | None = None) -> Any:
    """Return the plan with the terms of a correction, if there is one.

    `arms` are those of the correction that the plan has; None: all.
    """
    if correction is None:
        return plan
    temporal = correction.temporal
    if arms is not None and len(temporal) > 1:
        temporal = temporal[arms]
    return FieldPlan(plan, correction.terms.spatial, temporal)


def combined(images: Any, spatial: Any) -> Any:
    """Sum over terms of conj(c_l) times images [term, coil, ...]; spatial is [term, ...]."""
    total = images[0] * spatial[0].conj()
    for image, shape in zip(images[1:], spatial[1:], strict=True):
        total += image * shape.conj()
    return total
