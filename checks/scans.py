"""Scans that the doctor's simulated scanner sends: small, oblique, off-centre, of an object at a known place."""

import base64
import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import ismrmrd
import ismrmrd.xsd
import numpy as np
from numpy.typing import NDArray

from checks.phantom import Phantom, Place
from mrdhelper import SECONDS_PER_TICK
from mrdio.mrdsource import in_time_order
from recon.mrdencoding import encoding_axis, is_mirrored
from recon.trajectory import Trajectory
from simulation import spiralphysiology
from simulation.spiraldesign import SpiralDesign, design_spiral
from simulation.spiralsimulation import readout_axes

Message: TypeAlias = ismrmrd.Acquisition | ismrmrd.Waveform | ismrmrd.Image

SLICES, REPETITIONS = 2, 2
SPACING, THICKNESS = 12.0, 6.0  # of the slices [mm]
CENTRE = (17.0, -31.0, 43.0)  # of the stack, in patient coordinates [mm]
ROTATION = (25.0, -18.0, 35.0)  # of the stack [degree]
START = 11 * 3600 * 400  # time stamp of the first readout [ticks]
LATER = 3 * 3600 * 400  # time from one examination to the next [ticks]
UID = 4711  # of the first measurement
DWELL = 5.0  # [us]
MINI_HEADER = '<ParamMap.""> { <ParamBool."BIsSeriesEnd"> { } <ParamLong."NumberInSeries"> { 1 } }'
SPIRAL_REPETITIONS = 11  # times all arms
ARMS = 7  # of the spiral, at least
LENGTH = 1.0  # of scans of any size, at least [s]
PHYSIOLOGY_TIME = 30.0  # length of the scan with ECG and pilot tone [s]


@dataclass(frozen=True)
class Scan:
    """A scan to be sent.

    Attributes
    ----------
    name : str
        Kind of data, in words.
    header : ismrmrd.xsd.ismrmrdHeader
        MRD header.
    messages : list
        Readouts, waveforms or images in the order of time.
    places : tuple of Place
        Of the slices.
    phantom : Phantom or None
        The object, where it is known.
    tr : float
        Time from readout to readout [s]; 0 where there are none.
    header_xml : str
        The header as it is sent.
    """

    name: str
    header: Any
    messages: Sequence[Message]
    places: tuple[Place, ...]
    phantom: Phantom | None = None
    tr: float = 0.0
    header_xml: str = field(default="")

    def __post_init__(self) -> None:
        if not self.header_xml:
            object.__setattr__(self, "header_xml", ismrmrd.xsd.ToXML(self.header))

    def of_type(self, kind: type) -> list[Any]:
        """Messages of one type."""
        return [message for message in self.messages if isinstance(message, kind)]


# ------------------------------------------------------------------------------------------------------------ headers
def _places(centre: Sequence[float], axes: NDArray[np.float64], slices: int) -> tuple[Place, ...]:
    offsets = (np.arange(slices) - (slices - 1) / 2) * SPACING
    read, phase, normal = map(tuple, axes.tolist())
    return tuple(Place(tuple(np.array(centre) + offset * axes[2]), read, phase, normal) for offset in offsets)


def stack(size: float, slices: int = SLICES, mirrored: bool = False) -> Phantom:
    """Object in slices that lie as no module would guess."""
    return Phantom(_places(CENTRE, readout_axes(ROTATION), slices), SPACING, size, mirrored)


def make_header(
    matrix: tuple[int, int], pixel: float, coils: int, tr: float, kind: str = "cartesian", oversampling: int = 1,
    arms: int | None = None, repetitions: int = 1, slices: int = SLICES,
) -> Any:  # fmt: skip
    """MRD header of a scan.

    Parameters
    ----------
    matrix
        (x, y) of the image.
    pixel
        Pixel size [mm].
    coils
        Number of coils.
    tr
        Repetition time [s].
    kind
        Trajectory, in the header's words.
    oversampling
        Of the readout.
    arms
        Number of arms; None: lines, as many as rows.
    repetitions, slices
        How many.
    """
    xsd = ismrmrd.xsd
    columns, rows = matrix
    lines = arms or rows

    def space(factor: int) -> Any:
        return xsd.encodingSpaceType(
            matrixSize=xsd.matrixSizeType(x=columns * factor, y=rows, z=1),
            fieldOfView_mm=xsd.fieldOfViewMm(x=columns * factor * pixel, y=rows * pixel, z=THICKNESS),
        )

    def limit(count: int, centre: int = 0) -> Any:
        return xsd.limitType(minimum=0, maximum=count - 1, center=centre)

    limits = xsd.encodingLimitsType(
        kspace_encoding_step_1=limit(lines, 0 if arms else lines // 2),
        slice=limit(slices),
        repetition=limit(repetitions),
    )
    return xsd.ismrmrdHeader(
        version=1,
        measurementInformation=xsd.measurementInformationType(
            measurementID="doctor", patientPosition=xsd.patientPositionType.HFS, protocolName="doctor"
        ),
        acquisitionSystemInformation=xsd.acquisitionSystemInformationType(
            systemVendor="SIEMENS", systemModel="simulation", systemFieldStrength_T=3.0, receiverChannels=coils
        ),
        experimentalConditions=xsd.experimentalConditionsType(H1resonanceFrequency_Hz=127_728_000),
        encoding=[
            xsd.encodingType(
                trajectory=xsd.trajectoryType(kind),
                encodedSpace=space(oversampling),
                reconSpace=space(1),
                encodingLimits=limits,
            )
        ],
        sequenceParameters=xsd.sequenceParametersType(TR=[1e3 * tr], TE=[1.0]),
    )


# -------------------------------------------------------------------------------------------------------------- scans
def cartesian(
    mirrored: bool = False, matrix: tuple[int, int] = (40, 32), coils: int = 4, tr: float = 4e-3, pixel: float = 6.0,
    repetitions: int = REPETITIONS,
) -> Scan:  # fmt: skip
    """Cartesian scan of two slices, each repetition of one after the other; an ECG goes along.

    Parameters
    ----------
    mirrored
        Whether the object is mirrored, and all is measured hours later.
    matrix
        (x, y) of the image.
    coils
        Number of coils.
    tr
        Time from readout to readout [s].
    pixel
        Pixel size [mm].
    repetitions
        How often each slice is acquired.
    """
    header = make_header(matrix, pixel, coils, tr, oversampling=2, repetitions=repetitions)
    return cartesian_of(header, stack(pixel * min(matrix), mirrored=mirrored), repetitions, tr, mirrored)


def cartesian_of(header: Any, phantom: Phantom, repetitions: int, tr: float, later: bool = False) -> Scan:
    """Cartesian scan that fits a header: all lines between its limits, no acceleration."""
    encoding = header.encoding[0]
    x, y = encoding_axis(encoding, "x"), encoding_axis(encoding, "y")
    kx, ky = ((np.arange(a.points) - a.points // 2) * 1e3 / _extent(encoding, a, n) for a, n in ((x, "x"), (y, "y")))
    coils = getattr(header.acquisitionSystemInformation, "receiverChannels", None) or 4
    limit = getattr(encoding.encodingLimits, "kspace_encoding_step_1", None)
    centre = y.points // 2 if limit is None else limit.center
    counters = range(y.points) if limit is None else range(limit.minimum, limit.maximum + 1)
    lines = [(n, n - centre + y.points // 2) for n in counters if 0 <= n - centre + y.points // 2 < y.points]
    slices = range(len(phantom.places))
    signals = [
        phantom.signal(number, coils, kx[np.newaxis, :], ky[:, np.newaxis], is_mirrored(header)) for number in slices
    ]
    readouts: list[Any] = []
    for repetition in range(repetitions):
        for number in slices:
            for counter, row in lines:
                readout = _readout(signals[number][:, row], phantom.places[number], len(readouts), tr, later)
                readout.center_sample = x.points // 2
                readout.idx.kspace_encode_step_1, readout.idx.slice = counter, number
                readout.idx.repetition = repetition
                flags = ((counter == lines[0][0], ismrmrd.ACQ_FIRST_IN_SLICE, ismrmrd.ACQ_FIRST_IN_REPETITION, 0),
                         (counter == lines[-1][0], ismrmrd.ACQ_LAST_IN_SLICE, ismrmrd.ACQ_LAST_IN_REPETITION,
                          slices[-1]))  # fmt: skip
                for applies, of_slice, of_repetition, place in flags:
                    if applies:
                        readout.set_flag(of_slice)
                        if number == place:
                            readout.set_flag(of_repetition)
                readouts.append(readout)
    readouts[-1].set_flag(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
    return Scan("Cartesian k-space", header, readouts, phantom.places, phantom, tr)


def _extent(encoding: Any, axis: Any, name: str) -> float:
    """Extent of an axis of k-space's own field of view [mm]."""
    return float(getattr(encoding.encodedSpace.fieldOfView_mm, name))


def _readout(
    data: NDArray[np.complex64], place: Place, number: int, tr: float, later: bool, traj: Any = None
) -> ismrmrd.Acquisition:
    """Readout with what all have in common; data [coil, sample], `number` from 0."""
    readout = ismrmrd.Acquisition.from_array(np.ascontiguousarray(data), traj)
    readout.scan_counter = number + 1
    readout.measurement_uid = UID + later
    readout.acquisition_time_stamp = START + later * LATER + round(number * tr / SECONDS_PER_TICK)
    readout.sample_time_us = DWELL
    readout.position = place.position
    readout.read_dir, readout.phase_dir, readout.slice_dir = place.read_dir, place.phase_dir, place.slice_dir
    for coil in range(len(data)):
        readout.setChannelActive(coil)
    return readout


def spiral(
    mirrored: bool = False, matrix: int = 32, coils: int = 4, tr: float = 4e-3, repetitions: int = SPIRAL_REPETITIONS,
    slices: int = SLICES,
) -> Scan:  # fmt: skip
    """Spiral scan whose slices take turns; readouts carry their trajectory. See `cartesian`."""
    trajectory = _shortened(matrix, tr)
    pixel = 1e3 * trajectory.resolution
    header = make_header((matrix, matrix), pixel, coils, tr, kind="spiral", arms=trajectory.arms, slices=slices)
    phantom = stack(pixel * matrix, slices, mirrored)
    return spiral_of(header, trajectory, phantom, repetitions * slices * trajectory.arms, tr, mirrored)


def _shortened(matrix: int, tr: float) -> Trajectory:
    """Spiral of so few arms that each fits into the TR."""
    for arms in range(ARMS, 4 * matrix + ARMS):
        design = SpiralDesign(
            fov=0.2, resolution=0.2 / matrix, interleaves=arms, ordering="linear", pre_discard=0, dwell=4e-6
        )
        trajectory = design_spiral(design)
        if trajectory.readout_length * trajectory.dwell < 0.8 * tr:
            return trajectory
    raise ValueError(f"no spiral of matrix {matrix} fits into a TR of {1e3 * tr:g} ms")


def spiral_of(
    header: Any, trajectory: Trajectory, phantom: Phantom, readouts: int, tr: float, later: bool = False,
    carried: bool = True,
) -> Scan:  # fmt: skip
    """Spiral scan that fits a header and a trajectory.

    Parameters
    ----------
    carried
        Whether the readouts carry the trajectory; else the sequence's file has to tell it.
    """
    coils = getattr(header.acquisitionSystemInformation, "receiverChannels", None) or 4
    lead = 0 if carried else trajectory.pre_discard
    slices = len(phantom.places)
    # The scanner's sign, as trajectories are described for all vendors.
    signals = [
        phantom.signal(number, coils, trajectory.k[..., 0], trajectory.k[..., 1], True) for number in range(slices)
    ]
    made = []
    for number in range(readouts):
        turn, place = divmod(number, slices)
        arm = trajectory.arm_of(turn if carried else number)
        data = np.pad(signals[place][:, arm], ((0, 0), (lead, 0)))
        traj = trajectory.k[arm].astype(np.float32) if carried else None
        readout = _readout(data, phantom.places[place], number, tr, later, traj)
        readout.center_sample, readout.sample_time_us = lead, 1e6 * trajectory.dwell
        readout.idx.kspace_encode_step_1, readout.idx.slice = arm, place
        readout.idx.repetition = turn // trajectory.arms if carried else 0
        if turn % trajectory.arms == 0:
            readout.set_flag(ismrmrd.ACQ_FIRST_IN_SLICE)
        if turn % trajectory.arms == trajectory.arms - 1:
            readout.set_flag(ismrmrd.ACQ_LAST_IN_SLICE)
        made.append(readout)
    made[-1].set_flag(ismrmrd.ACQ_LAST_IN_MEASUREMENT)
    return Scan("spiral k-space", header, made, phantom.places, phantom, tr)


def spiral_with_physiology(mirrored: bool = False) -> Scan:
    """Long spiral scan of one slice with ECG and pilot tone, for reconstructions that sort by them."""
    tr = 20e-3
    scan = spiral(mirrored, matrix=24, coils=2, tr=tr, repetitions=round(PHYSIOLOGY_TIME / tr / ARMS), slices=1)
    random, begin = np.random.default_rng(5), START + mirrored * LATER
    physiology = spiralphysiology.make_physiology(PHYSIOLOGY_TIME, random, tr=tr)
    pilot = spiralphysiology.pilot_tone(physiology, len(scan.messages), tr, 0.15, begin, random)
    ecg = spiralphysiology.ecg(physiology, PHYSIOLOGY_TIME, begin, random)
    waveforms = sorted([*pilot, *ecg], key=_end)
    messages = list(in_time_order(iter(scan.messages), iter(waveforms), _end))
    return Scan("spiral k-space with ECG and pilot tone", scan.header, messages, scan.places, scan.phantom, tr)


def _end(waveform: Any) -> float:
    return float(waveform.time_stamp + waveform.number_of_samples * 1e-6 * waveform.sample_time_us / SECONDS_PER_TICK)


def images(mirrored: bool = False, matrix: tuple[int, int] = (40, 32), pixel: float = 6.0) -> Scan:
    """Magnitude and phase images of two slices, in two series, with a vendor's attributes. See `cartesian`."""
    header = make_header(matrix, pixel, 1, 10e-3)
    phantom = stack(pixel * min(matrix), mirrored=mirrored)
    made = []
    for series, kind in ((1, ismrmrd.IMTYPE_MAGNITUDE), (2, ismrmrd.IMTYPE_PHASE)):
        for number, place in enumerate(phantom.places):
            head = ismrmrd.ImageHeader()
            head.version, head.image_type, head.image_series_index, head.image_index = 1, kind, series, number + 1
            head.slice, head.measurement_uid = number, UID + mirrored
            head.acquisition_time_stamp = START + mirrored * LATER + 40 * number
            head.position, head.read_dir = place.position, place.read_dir
            head.phase_dir, head.slice_dir = place.phase_dir, place.slice_dir
            head.field_of_view = (matrix[0] * pixel, matrix[1] * pixel, THICKNESS)
            head.matrix_size = (*matrix, 1)
            density = phantom.picture(head)
            # Magnitude above zero everywhere, so that phase counts everywhere.
            pixels = 800 + 800 * density if kind == ismrmrd.IMTYPE_MAGNITUDE else 2048 + 400 * density
            meta = ismrmrd.Meta(_attributes(head, last=number == SLICES - 1))
            whole = np.rint(pixels).astype(np.uint16)[np.newaxis, np.newaxis]
            made.append(ismrmrd.Image(head=head, data=whole, meta=meta))
    return Scan("images", header, made, phantom.places, phantom)


def _attributes(head: Any, last: bool) -> dict[str, Any]:
    """Attributes as a scanner gives them to its images."""
    mini_header = MINI_HEADER.replace("{ }", '{ "true" }') if last else MINI_HEADER
    meta: dict[str, Any] = {
        "DataRole": "Image",
        "IceMiniHead": base64.b64encode(mini_header.encode()).decode(),
        "WindowCenter": "2048",
        "WindowWidth": "4096",
        "ImageRowDir": [f"{value:.18f}" for value in head.read_dir],
        "ImageColumnDir": [f"{value:.18f}" for value in head.phase_dir],
        "SlicePosLightMarker": "0",
    }
    if head.image_type == ismrmrd.IMTYPE_PHASE:
        meta["Venc"] = "150"
    return meta


# ------------------------------------------------------------------------------------------------- what goes wrong
def empty(scan: Scan) -> Scan:
    """Return the scan as it is when the operator stops it at once: no data."""
    return Scan(f"a scan without data ({scan.name})", scan.header, [], scan.places, None, scan.tr, scan.header_xml)


def flipped(scan: Scan) -> Scan:
    """Return the scan with other content and the same headers: k-space conjugated, images mirrored."""
    messages: list[Any] = []
    for message in scan.messages:
        changed: Any = message
        if isinstance(message, ismrmrd.Image):
            data = np.ascontiguousarray(message.data[..., ::-1])
            changed = ismrmrd.Image(head=message.getHead(), data=data, meta=ismrmrd.Meta(message.meta))
        elif isinstance(message, ismrmrd.Acquisition):
            changed = copy.deepcopy(message)
            changed.data[:] = message.data.conj()
        messages.append(changed)
    return Scan(scan.name, scan.header, messages, scan.places, None, scan.tr, scan.header_xml)


def spoilt(scan: Scan) -> Scan:
    """Return the scan with a message in the middle that does not fit the others: its size, its place in k-space."""
    messages = list(scan.messages)
    middle = next(n for n in range(len(messages) // 2, len(messages)) if not isinstance(messages[n], ismrmrd.Waveform))
    odd: Any = messages[middle]
    if isinstance(odd, ismrmrd.Image):
        odd = ismrmrd.Image(head=odd.getHead(), data=odd.data[..., ::2, :-3].copy(), meta=ismrmrd.Meta(odd.meta))
    else:
        head = copy.copy(odd.getHead())
        data = odd.data[:, : odd.number_of_samples // 2].copy()
        trajectory = odd.traj[: data.shape[1]].copy() if odd.trajectory_dimensions else None
        odd = ismrmrd.Acquisition.from_array(data, trajectory)
        for name in ("scan_counter", "acquisition_time_stamp", "measurement_uid", "position", "read_dir", "phase_dir",
                     "slice_dir", "sample_time_us", "flags"):  # fmt: skip
            setattr(odd, name, getattr(head, name))
        odd.idx.slice, odd.idx.repetition, odd.idx.kspace_encode_step_1 = head.idx.slice, head.idx.repetition, 5000
    messages[middle] = odd
    return Scan(f"a message that does not fit ({scan.name})", scan.header, messages, scan.places, None, scan.tr,
                scan.header_xml)  # fmt: skip


_MAKERS: dict[str, Callable[[bool], Scan]] = {
    "cartesian": cartesian,
    "images": images,
    "spiral": spiral,
    "physiology": spiral_with_physiology,
}

KINDS = tuple(_MAKERS)
"""Input that a module may be for, by the word on the command line; what takes least time comes first."""


@functools.cache
def make(kind: str, mirrored: bool = False) -> Scan:
    """Scan of a kind, or the same of the mirrored object, hours later; nobody changes it."""
    return _MAKERS[kind](mirrored)


def sized(kind: str, matrix: int, coils: int, tr: float) -> Scan:
    """Scan of a kind of k-space that lasts about a second, of any size.

    Parameters
    ----------
    kind
        "cartesian" or "spiral".
    matrix
        Pixels along each side.
    coils
        Number of coils.
    tr
        Time from readout to readout [s].

    Raises
    ------
    ValueError
        There is no such scan.
    """
    if kind == "cartesian":
        repetitions = max(round(LENGTH / (tr * matrix * SLICES)), REPETITIONS)
        return cartesian(matrix=(matrix, matrix), coils=coils, tr=tr, pixel=240 / matrix, repetitions=repetitions)
    if kind == "spiral":
        turns = max(round(LENGTH / (tr * SLICES * ARMS)), SPIRAL_REPETITIONS)
        return spiral(matrix=matrix, coils=coils, tr=tr, repetitions=turns)
    raise ValueError("only Cartesian and spiral k-space can be of any size here")
