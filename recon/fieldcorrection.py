"""Field correction of one scan: which fields are corrected, and the terms of each image; see `fieldterms`."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import ismrmrd
import numpy as np
from numpy.typing import NDArray

from recon import concomitant
from recon.autofield import AutoFieldMap, NoSignalError, estimate
from recon.configuration import ConfigurationError, FieldSettings
from recon.fieldterms import FieldTerms, Phase, find_terms

logger = logging.getLogger(__name__)

LOW_FIELD = 1.0  # [T], below which concomitant fields are corrected by themselves
ASSUMED_DWELL = 1e-6  # [s], where none is known and only the scan's own data tell the field: its unit does not matter
SAME_TIME = 0.005  # of a readout, by which arms may pass the centre of k-space apart and have their times in common


class FieldMap(Protocol):
    """Source of a field map."""

    def on_grid(
        self, head: ismrmrd.AcquisitionHeader, shape: tuple[int, int], field_of_view: tuple[float, float]
    ) -> NDArray[np.floating] | None:
        """Off-resonance [row, column] [Hz] of the plane of a readout, field of view (x, y) [mm]; None: not known."""


@dataclass(frozen=True, eq=False)
class Correction:
    """Terms of planes that have their arms in common.

    Attributes
    ----------
    terms
        Their `spatial` is [term, plane, row, column]; of a single plane, see `plane`, [term, row, column].
    temporal
        b_l of the arms, complex64 [arm, term, sample]; a single arm stands for all.
    """

    terms: FieldTerms
    temporal: NDArray[np.complex64]

    def __len__(self) -> int:
        return len(self.terms)

    def plane(self, number: int = 0) -> Correction:
        """That of one plane."""
        return replace(self, terms=replace(self.terms, spatial=self.terms.spatial[:, number]))

    @property
    def demodulation(self) -> NDArray[np.complex64]:
        """Factors [arm or 1, sample] of samples that correct as the first term does, but for a phase of the image."""
        first = self.temporal[:, 0].conj()
        return (first / np.abs(first)).astype(np.complex64)

    def first(self, count: int) -> Correction:
        """The first `count` terms."""
        return Correction(self.terms.first(count), self.temporal[:, :count])


class FieldCorrection:
    """Terms that correct the images of a scan.

    Parameters
    ----------
    settings
        Which fields, and how well.
    header
        The MRD header.
    field_map
        Of the off-resonance; None: there is none.
    tell, warn
        Called with a text for the client.

    Raises
    ------
    ConfigurationError
        Concomitant fields are to be corrected, and the header has no field strength.
    """

    def __init__(
        self, settings: FieldSettings, header: Any, field_map: FieldMap | None = None,
        tell: Callable[[str], None] = logger.info, warn: Callable[[str], None] = logger.warning,
    ) -> None:  # fmt: skip
        self._tolerance, self._map = settings.field_tolerance, field_map
        self._tell, self._warn = tell, warn
        self._most_told, self._fewest_told = 0, math.inf  # terms
        self._without_dwell = self._stacks_told = False
        self._known: list[tuple[float, ...]] = []
        self._b0 = _concomitant_field(settings.concomitant, concomitant.field_strength(header), tell)

    @property
    def active(self) -> bool:
        """True where any field is to be corrected."""
        return self._b0 is not None or self._map is not None

    @property
    def learns(self) -> bool:
        """True where the scan's own data tell the off-resonance, see `learn`."""
        return isinstance(self._map, AutoFieldMap)

    def is_due(self, head: ismrmrd.AcquisitionHeader) -> bool:
        """True where the field in the plane of a readout is to be learned, for the first time or again."""
        return isinstance(self._map, AutoFieldMap) and self._map.is_due(head)

    def learn(
        self, head: ismrmrd.AcquisitionHeader, plan: Any, samples: NDArray[np.complex64], k: NDArray[np.floating],
        dwell: float, field_of_view: tuple[float, float],
    ) -> bool:  # fmt: skip
        """Learn the off-resonance of a plane from its own data; the client is told what it is.

        Parameters
        ----------
        head
            Of a readout of the plane.
        plan
            Weighted adjoint transform of arms that fill k-space.
        samples
            complex64 [coil, arm, sample].
        k, dwell
            As for `times`, of the same arms; a dwell time of 0 is not known.
        field_of_view
            Of the images (x, y) [mm].

        Returns
        -------
        True when the terms of the plane have changed.
        """
        assert isinstance(self._map, AutoFieldMap)
        times = self.times(k, self._known_dwell(dwell))
        if self._b0 is not None:
            found = find_terms(
                Phase(times[..., 1:], concomitant.shapes(head, plan.shape, field_of_view)), self._tolerance
            )
            if found is not None:
                samples = samples * Correction(found, found.temporal(times[..., 1:])).demodulation
        try:
            learned = estimate(plan, samples, np.linalg.norm(k, axis=-1), times[..., 0])
        except NoSignalError as error:
            logger.info("The field of slice %d is not learned: %s", head.idx.slice, error)
            return False
        changed = self._map.keep(head, learned)
        (self._tell if changed else logger.info)(
            f"slice {head.idx.slice}: {learned}{'' if dwell > 0 else ', as if a sample took 1 us'}"
        )
        return changed

    def leave_stacks(self) -> None:
        """Tell the client, once, where the scan's own data would tell the off-resonance, but of slices only."""
        if self.learns and not self._stacks_told:
            self._warn('off-resonance is not corrected: field_map = "auto" is for slices, this scan is a 3-D stack')
            self._stacks_told = True

    def _known_dwell(self, dwell: float) -> float:
        """Time from sample to sample [s]; 0 where it is not known and needed."""
        return ASSUMED_DWELL if not dwell > 0 and self.learns and self._b0 is None else dwell

    def place(self, head: ismrmrd.AcquisitionHeader) -> tuple[float, ...]:
        """Position of a readout, by which terms differ even if the orientation is the same; empty: they do not.

        It is the first one of the scan that is no farther away than `concomitant.SAME_PLACE` [mm].
        """
        if not self.active:
            return ()
        position = tuple(head.position)
        for known in self._known:
            if math.dist(known, position) <= concomitant.SAME_PLACE:
                return known
        self._known.append(position)
        return position

    def times(self, k: NDArray[np.floating], dwell: float) -> NDArray[np.float64]:
        """`Phase.times` of arms, since each passed the centre of k-space.

        Parameters
        ----------
        k
            K-space [arm, sample, (kx, ky)] [1/m].
        dwell
            Time from sample to sample [s].
        """
        middle = _centre(k)
        features = []
        if self._map is not None:
            features.append(dwell * (np.arange(k.shape[1]) - middle[:, np.newaxis])[..., np.newaxis])
        if self._b0 is not None:
            integrals = concomitant.integrals(k, dwell, self._b0)
            features.append(integrals - np.take_along_axis(integrals, middle[:, np.newaxis, np.newaxis], axis=1))
        times = np.concatenate(features, axis=-1)
        return times[:1] if self._b0 is None and np.ptp(middle) == 0 else times

    def terms(
        self, k: NDArray[np.floating], dwell: float, heads: Sequence[ismrmrd.AcquisitionHeader],
        shape: tuple[int, int], field_of_view: tuple[float, float],
    ) -> Correction | None:  # fmt: skip
        """Find the terms of planes that have their arms in common; None where there is nothing to correct.

        So it is, too, where the dwell time is not known: the client is told once.

        Parameters
        ----------
        k, dwell
            As for `times`; a dwell time of 0 is not known.
        heads
            A readout's header for each plane: its position and orientation.
        shape
            Of the images (rows, columns).
        field_of_view
            Of the images (x, y) [mm].

        Raises
        ------
        ValueError
            The field map is not finite.
        """
        if not self.active:
            return None
        dwell = self._known_dwell(dwell)
        if not dwell > 0:
            if not self._without_dwell:
                self._warn("fields are not corrected: readouts have no sample_time_us, which tells how long they take")
            self._without_dwell = True
            return None
        places = np.stack([self._places(head, shape, field_of_view) for head in heads], axis=1)
        times = self.times(k, dwell)
        found = find_terms(Phase(times, places), self._tolerance)
        if found is None:
            return None
        ends = times[-1, [0, -1]] @ places.reshape(len(places), -1)
        reach = float(np.ptp(ends, axis=1).max())
        what = [f"concomitant fields at {self._b0:.2f} T"] if self._b0 is not None else []
        what += ["off-resonance"] if self._map is not None else []
        text = (
            f"{' and '.join(what)} are corrected by {len(found)} term(s), for phases that differ by {reach:.2f} cycles "
            f"over the image at the end of a readout: error {found.error:.2g}, field_tolerance = {self._tolerance:g}"
        )
        (self._tell if len(found) > self._most_told else logger.info)(text)
        self._most_told = max(self._most_told, len(found))
        return Correction(found, found.temporal(times))

    def _places(
        self, head: ismrmrd.AcquisitionHeader, shape: tuple[int, int], field_of_view: tuple[float, float]
    ) -> NDArray[np.float64]:
        """`Phase.places` of a plane [feature, row, column]."""
        features = []
        if self._map is not None:
            off_resonance = self._map.on_grid(head, shape, field_of_view)
            features.append(np.zeros((1, *shape)) if off_resonance is None else off_resonance[np.newaxis].astype(float))
        if self._b0 is not None:
            features.append(concomitant.shapes(head, shape, field_of_view))
        return np.concatenate(features)

    def keep_pace(self, correction: Correction, needed: float, available: float) -> Correction:
        """Leave out terms that the scan leaves no time for, but one; tells the client when they are fewer than before.

        Parameters
        ----------
        correction
            As the tolerance asks for it.
        needed
            Time that all of its terms take for each readout [s].
        available
            Time from readout to readout that may be spent on them [s].
        """
        count = len(correction)
        fewer = max(int(count * available / needed), 1) if needed > available else count
        if fewer == count:
            return correction
        if fewer < self._fewest_told:
            self._fewest_told = fewer
            errors = correction.terms.errors
            self._warn(
                f"field correction by {count} terms would take {1e3 * needed:.2f} ms per readout, the scan leaves "
                f"{1e3 * available:.2f} ms: {fewer} term(s) are used, with an error of {errors[fewer]:.2g} in "
                f"place of {errors[count]:.2g}; a larger field_tolerance, or fewer coils, takes less"
            )
        return correction.first(fewer)


def _centre(k: NDArray[np.floating]) -> NDArray[np.intp]:
    """Sample of each arm [arm, sample, (kx, ky)] that is the nearest to k = 0, of the first time that it comes by."""
    radius = np.linalg.norm(k, axis=-1)
    step = np.linalg.norm(np.diff(k, axis=1), axis=-1).max(axis=1, initial=0)
    near = radius <= (radius.min(axis=1) + step)[:, np.newaxis]
    left = np.cumsum(~near & (np.cumsum(near, axis=1) > 0), axis=1) > 0  # it has come by, and gone
    middle = np.where(near & ~left, radius, np.inf).argmin(axis=1)
    common = int(np.median(middle))
    return np.where(abs(middle - common) <= SAME_TIME * k.shape[1], common, middle)


def _concomitant_field(asked: str, b0: float | None, tell: Callable[[str], None]) -> float | None:
    """Main field [T] whose concomitant fields are corrected; None: they are not."""
    if asked == "off":
        return None
    if b0 is None:
        if asked == "on":
            raise ConfigurationError(
                'concomitant = "on" needs the main field, but the header has neither systemFieldStrength_T nor '
                "H1resonanceFrequency_Hz"
            )
        tell("concomitant fields are not corrected: the header has no systemFieldStrength_T")
        return None
    if asked == "auto" and b0 >= LOW_FIELD:
        logger.info("Concomitant fields are not corrected at %.2f T", b0)
        return None
    return b0
