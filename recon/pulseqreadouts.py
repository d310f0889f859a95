"""Image readouts of a Pulseq sequence: the k-space of each, by integration of the gradients from pulse to pulse.

`python -m recon.pulseqreadouts SEQUENCE RESULT.npz` reads a `.seq` file with pypulseq and writes what `pulseq` needs of
it. It is a program of its own, because nothing else limits the time and memory that a damaged file takes, and because
pypulseq brings plotting libraries that the server does not need.

Format: Layton et al., Magn Reson Med 2017;77:1544, doi 10.1002/mrm.26235; https://pulseq.github.io;
versions 1.2 to 1.5.
"""

from __future__ import annotations

import hashlib
import math
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recon import density
from recon.sequenceextent import defined_field_of_view, defined_resolution, supported_field_of_view

RESULT_VERSION = b"3"  # of `ImageReadouts` and how they are made: results of another one are made anew
MEMORY_LIMIT = 4 << 30  # bytes, of the program
MAX_SAMPLES = 1 << 24  # of all different readouts
SAME = 1e-4  # of the largest |k|: readouts that differ by less are one
PLANAR = 1e-3  # of the largest |k|: change of kz during a readout that still counts as none
MAX_REASON = 300  # characters: a reason may quote the file
UNCOVERED_PIXELS = 64  # of the field of view for the density of arms that leave gaps, where none is defined
NOT_READ_BY_PYPULSEQ = ("ROTATIONS", "RF_SHIMS")  # extensions of format 1.5
EXCITATIONS, REFOCUSING = "eu", "r"  # uses of a pulse; one of undefined use counts as excitation


class SequenceError(ValueError):
    """A sequence that gives no two-dimensional readouts; the text says why."""


class Waveform(NamedTuple):
    """A gradient event, linear between its corners: times [s], values [Hz/m] and integral up to each corner [1/m]."""

    times: NDArray[np.float64]
    values: NDArray[np.float64]
    moments: NDArray[np.float64]

    @classmethod
    def through(cls, times: Any, values: Any) -> Waveform:
        """Waveform through corners."""
        times, values = np.asarray(times, float), np.asarray(values, float)
        pieces = np.diff(times) * (values[1:] + values[:-1]) / 2
        return cls(times, values, np.concatenate(([0.0], np.cumsum(pieces))))

    def moment(self, t: Any) -> NDArray[np.float64]:
        """Integral from the start of the block to `t` [1/m]."""
        before = np.clip(np.searchsorted(self.times, t, side="right") - 1, 0, len(self.times) - 1)
        t = np.clip(t, self.times[0], self.times[-1])
        average = (self.values[before] + np.interp(t, self.times, self.values)) / 2
        return self.moments[before] + average * (t - self.times[before])


NO_GRADIENT = Waveform.through([0.0], [0.0])


@dataclass(frozen=True, eq=False)
class ImageReadouts:
    """Image readouts of a sequence.

    Attributes
    ----------
    k
        K-space of the different readouts [arm, sample, (kx, ky)] [1/m].
    order
        Arm of each readout, in the order in which the sequence plays them; -1 for one that is none of the image's.
        Those that labels declare navigators, noise or calibration are left out: converters flag them.
    samples
        Number of samples of each of them.
    first_run_only
        True for each of them that is played in the first run of the sequence only: label ONCE = 1.
    kz
        Of each of them [1/m].
    dwell
        Time from sample to sample [s].
    weights
        Density compensation [arm, sample], at most 1.
    defined_fov, defined_resolution
        Of the sequence's definitions [m]; NaN where they say nothing.
    supported_fov
        Field of view that all arms together are dense enough for [m]; NaN where they do not cover k-space, or the
        definitions have one.
    remarks
        What a user should know, one sentence each.
    """

    k: NDArray[np.float64]
    order: NDArray[np.int64]
    samples: NDArray[np.int64]
    first_run_only: NDArray[np.bool_]
    kz: NDArray[np.float64]
    dwell: float
    weights: NDArray[np.float64]
    defined_fov: float
    defined_resolution: float
    supported_fov: float
    remarks: tuple[str, ...]


# --- Reading --------------------------------------------------------------------------------------------------------


def check_extension_lists(text: str) -> None:
    """Check that each list of extensions ends: pypulseq follows one that does not for ever.

    Raises
    ------
    SequenceError
        A list comes back to one of its entries.
    """
    following: dict[int, int] = {}
    inside = False
    for line in text.splitlines():
        if line.startswith(("extension ", "[")):
            inside = line.startswith("[EXTENSIONS]")
        elif inside and len(words := line.split()) == 4 and all(word.isdecimal() for word in words):
            following[int(words[0])] = int(words[3])
    ended: set[int] = {0}
    for start in following:
        chain: set[int] = set()
        entry = start
        while entry in following and entry not in ended:
            if entry in chain:
                raise SequenceError(f"the list of extensions comes back to its entry {entry}")
            chain.add(entry)
            entry = following[entry]
        ended |= chain


def take_out_extensions(text: str) -> tuple[str, dict[int, str], dict[int, tuple[float, ...]]]:
    """Take out the sections of extensions that pypulseq does not read.

    Returns
    -------
    The text without them, their names by the number of their type, and the quaternions (w, x, y, z) of rotations.
    """
    names: dict[int, str] = {}
    quaternions: dict[int, tuple[float, ...]] = {}
    kept: list[str] = []
    taken = ""
    for line in text.splitlines():
        words = line.split()
        if line.startswith(("extension ", "[")):
            taken = words[1] if len(words) == 3 and words[1] in NOT_READ_BY_PYPULSEQ else ""
            if taken:
                names[int(words[2])] = taken
                continue
        if not taken:
            kept.append(line)
        elif not words:
            taken = ""
        elif taken == "ROTATIONS" and not line.startswith("#"):
            quaternions[int(words[0])] = tuple(float(word) for word in words[1:])
    # pypulseq reads on for ever in a file whose last section does not end with an empty line.
    return "\n".join(kept) + "\n\n", names, quaternions


def read_sequence(text: str) -> Any:
    """Read the text of a `.seq` file as a `pypulseq.Sequence`; gradients, pulses and ADCs keep their numbers.

    Duplicates stay, because pypulseq rounds what it compares: delays to whole microseconds.
    """
    import pypulseq

    sequence = pypulseq.Sequence()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = Path(folder) / "sequence.seq"
        file.write_text(text, "utf-8")
        sequence.read(str(file), detect_rf_use=None, remove_duplicates=False)
    return sequence


def rotation_matrix(quaternion: tuple[float, ...]) -> NDArray[np.float64]:
    """Rotation [3, 3] of a quaternion (w, x, y, z), which need not have length 1."""
    if len(quaternion) != 4 or not np.isfinite(quaternion).all() or not any(quaternion):
        raise SequenceError(f"a rotation {quaternion} is no quaternion")
    w, x, y, z = np.array(quaternion) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


class Events:
    """Events of a sequence that has been read: waveforms, pulses, ADCs, labels and rotations of its blocks."""

    def __init__(self, sequence: Any, names: dict[int, str], quaternions: dict[int, tuple[float, ...]]) -> None:
        from pypulseq.supported_labels_rf_use import get_supported_labels

        self._sequence = sequence
        self._names = names | dict(zip(sequence.extension_numeric_idx, sequence.extension_string_idx, strict=True))
        self._rotations = {number: rotation_matrix(each) for number, each in quaternions.items()}
        self._labels = get_supported_labels()
        self._waveforms: dict[int, Waveform] = {0: NO_GRADIENT}

    def waveform(self, number: int) -> Waveform:
        """Gradient event of that number; 0 is none."""
        if number not in self._waveforms:
            library = self._sequence.grad_library
            make = self._trapezoid if library.type[number] == "t" else self._arbitrary
            self._waveforms[number] = make(*library.data[number])
        return self._waveforms[number]

    def _trapezoid(self, amplitude: float, rise: float, flat: float, fall: float, delay: float) -> Waveform:
        return Waveform.through(delay + np.cumsum([0, rise, flat, fall]), amplitude * np.array([0, 1, 1, 0]))

    def _arbitrary(
        self, amplitude: float, first: float | None, last: float | None, shape: int, time_shape: int, delay: float
    ) -> Waveform:
        raster = self._sequence.grad_raster_time
        values = amplitude * self._shape(shape)
        if time_shape > 0:  # corners at times of their own
            return Waveform.through(delay + raster * self._shape(time_shape), values)
        # Samples stand in the middle of the raster's intervals, and at their borders as well with time shape -1; the
        # format has the values at both ends apart.
        times = (np.arange(len(values)) + 0.5 if time_shape == 0 else 0.5 * np.arange(1, len(values) + 1)) * raster
        times = np.concatenate(([0.0], times, [times[-1] + raster / 2]))
        return Waveform.through(delay + times, np.concatenate(([first or 0.0], values, [last or 0.0])))

    def _shape(self, number: int) -> NDArray[np.float64]:
        from types import SimpleNamespace

        from pypulseq.decompress_shape import decompress_shape

        data = self._sequence.shape_library.data[number]
        if not len(data) - 1 <= data[0] <= MAX_SAMPLES:
            raise SequenceError(f"shape {number:g} claims {data[0]:g} samples for {len(data) - 1} stored numbers")
        return np.asarray(decompress_shape(SimpleNamespace(num_samples=data[0], data=data[1:])), float)

    def pulse(self, number: int) -> tuple[float, str]:
        """Centre of a pulse [s] and its use, as the format's letter."""
        library = self._sequence.rf_library
        return library.data[number][4] + library.data[number][5], library.type.get(number, "u")

    def adc(self, number: int) -> tuple[int, float, float]:
        """Samples, dwell [s] and delay [s] of an ADC event."""
        samples, dwell, delay = self._sequence.adc_library.data[number][:3]
        if not (1 <= samples <= MAX_SAMPLES and 0 < dwell < 1 and 0 <= delay < np.inf):
            raise SequenceError(f"ADC {number} has {samples:g} samples of {dwell:g} s after {delay:g} s")
        return int(samples), dwell, delay

    def extensions(self, number: int) -> tuple[list[tuple[str, str, int]], NDArray[np.float64]]:
        """Labels (SET or INC, name, value) of a block, in their order, and the rotation of its gradients."""
        labels: list[tuple[str, str, int]] = []
        rotation = np.eye(3)
        while number:
            kind, reference, following = (int(each) for each in self._sequence.extensions_library.data[number])
            name = self._names.get(kind, "")
            if name in ("LABELSET", "LABELINC"):
                library = self._sequence.label_set_library if name == "LABELSET" else self._sequence.label_inc_library
                value, label = library.data[reference]
                labels.append((name[-3:], self._labels[int(label) - 1], int(value)))
            elif name == "ROTATIONS":
                rotation = self._rotations[reference]
            number = following
        return labels[::-1], rotation  # the format lists the last one first


# --- From pulse to pulse --------------------------------------------------------------------------------------------


class Played(NamedTuple):
    """A readout in the order of the sequence: which of the candidates, or -1; samples, dwell [s], label ONCE."""

    candidate: int
    samples: int
    dwell: float
    once: int


def walk(blocks: Iterable[Any], events: Events) -> tuple[list[Played], list[NDArray[np.float64]]]:
    """Go through the blocks, and integrate the gradients from each excitation on.

    K-space is 0 at the centre of an excitation, and a refocusing pulse negates it.

    Returns
    -------
    Readouts in their order, without those that labels declare none of the image's; and the k-space
    [sample, (kx, ky, kz)] [1/m] of the candidates: readouts with the same events and the same k before them are one.
    """
    played: list[Played] = []
    candidates: list[NDArray[np.float64]] = []
    known: dict[Any, int] = {}
    kept = 0
    labels: Counter[str] = Counter()
    position, excited = np.zeros(3), False
    for block in blocks:
        _, rf, *gradients, adc, extension = (int(each) for each in block[:7])
        changes, rotation = events.extensions(extension)
        for change, name, value in changes:
            labels[name] = value if change == "SET" else labels[name] + value
        waveforms = [events.waveform(number) for number in gradients]
        pulse, before = -np.inf, position
        if rf:
            centre, use = events.pulse(rf)
            if use in EXCITATIONS or use in REFOCUSING:
                pulse = centre
                moment = rotation @ np.array([float(each.moment(centre)) for each in waveforms])
                excited = excited or use in EXCITATIONS
                position = -moment if use in EXCITATIONS else -position - 2 * moment
        if adc and not is_labelled_out(labels):
            samples, dwell, delay = events.adc(adc)
            candidate = -1
            if excited:
                places = np.round([*before, *position], 6) + 0.0
                key = (*gradients, adc, rotation.tobytes(), pulse, places.tobytes())
                candidate = known.setdefault(key, len(candidates))
                if candidate == len(candidates):
                    kept += samples
                    if kept > MAX_SAMPLES:
                        raise SequenceError(f"its different readouts have more than {MAX_SAMPLES} samples in all")
                    times = delay + (np.arange(samples) + 0.5) * dwell
                    moments = np.stack([each.moment(times) for each in waveforms], axis=-1)
                    start = np.where(times[:, np.newaxis] < pulse, before, position)
                    candidates.append(start + moments @ rotation.T)
            played.append(Played(candidate, samples, dwell, labels["ONCE"]))
        position = position + rotation @ np.array([each.moments[-1] for each in waveforms])
    return played, candidates


def is_labelled_out(labels: Counter[str]) -> bool:
    """True if labels declare a readout a navigator, noise, or calibration only, as `mrdencoding.is_imaging` sees it."""
    return bool(labels["NAV"] or labels["NOISE"] or (labels["REF"] and not labels["IMA"]))


def image_readouts(text: str) -> ImageReadouts:
    """Image readouts of a sequence.

    Where readouts have different lengths, those of one length that have most samples in all are the image's.

    Parameters
    ----------
    text
        Of a `.seq` file.

    Raises
    ------
    SequenceError
        There is no readout after an excitation, kz changes during readouts, or some are for the last run only.
    Exception
        Whatever pypulseq raises for a file that it cannot read.
    """
    check_extension_lists(text)
    text, names, quaternions = take_out_extensions(text)
    sequence = read_sequence(text)
    played, candidates = walk(sequence.block_events.values(), Events(sequence, names, quaternions))
    if any(each.once == 2 for each in played):
        raise SequenceError(
            "readouts have the label ONCE = 2: only the last repetition has them, and which one that is, is not known"
        )
    totals: Counter[tuple[int, float]] = Counter()
    for each in played:
        totals[each.samples, each.dwell] += each.samples if each.candidate >= 0 else 0
    if not any(totals.values()):
        raise SequenceError("it has no image readout: none follows an excitation pulse, or labels declare all others")
    (samples, dwell), _ = totals.most_common(1)[0]
    of_image = [each.candidate if (each.samples, each.dwell) == (samples, dwell) else -1 for each in played]
    used = sorted({candidate for candidate in of_image if candidate >= 0})
    k = np.stack([candidates[candidate] for candidate in used])
    largest = float(np.linalg.norm(k[..., :2], axis=-1).max())
    if not np.isfinite(k).all() or largest == 0:
        raise SequenceError("no gradient along x or y acts before or during its readouts")
    change = float(np.ptp(k[..., 2], axis=1).max())
    if change > PLANAR * largest:
        raise SequenceError(f"kz changes by up to {change:.4g} 1/m during a readout: no two-dimensional trajectory")
    distinct, arm_of = merged(k[..., :2], SAME * largest)
    arms = dict(zip(used, arm_of, strict=True)) | {-1: -1}
    kz = dict(zip(used, k[:, 0, 2], strict=True)) | {-1: 0.0}
    remarks = []
    if others := of_image.count(-1):
        remarks.append(f"{others} of {len(played)} readouts are none of the image's: no excitation, or other length")
    defined = defined_field_of_view(sequence.definitions)
    supported = math.nan if math.isfinite(defined) else supported_field_of_view(distinct)
    fields = [each for each in (defined, supported, UNCOVERED_PIXELS / (2 * largest)) if math.isfinite(each)]
    weights = density.weights_of_arms(distinct, (fields[0], fields[0]))
    return ImageReadouts(
        k=distinct,
        order=np.array([arms[each] for each in of_image], np.int64),
        samples=np.array([each.samples for each in played], np.int64),
        first_run_only=np.array([each.once == 1 for each in played]),
        kz=np.array([kz[each] for each in of_image]),
        dwell=dwell,
        weights=weights,
        defined_fov=defined,
        defined_resolution=defined_resolution(sequence.definitions, defined, largest),
        supported_fov=supported,
        remarks=tuple(remarks),
    )


def merged(k: NDArray[np.float64], tolerance: float) -> tuple[NDArray[np.float64], list[int]]:
    """Different ones of some readouts, and the number among these of each.

    Parameters
    ----------
    k
        K-space [readout, sample, (kx, ky)] [1/m].
    tolerance
        Readouts are one when no sample differs by more [1/m].
    """
    picked = k[:, np.unique(np.linspace(0, k.shape[1] - 1, 16).astype(int))].reshape(len(k), -1)
    # Two raster grids, so that a value on the border of one grid's interval is inside one of the other's.
    grids = [np.floor(picked / tolerance + offset).astype(np.int64) for offset in (0.123, 0.623)]
    known: dict[tuple[int, bytes], list[int]] = {}
    chosen: list[int] = []
    number_of: list[int] = []
    for readout in range(len(k)):
        keys = [(grid, values[readout].tobytes()) for grid, values in enumerate(grids)]
        near = [number for key in keys for number in known.get(key, ())]
        number = next((each for each in near if np.abs(k[chosen[each]] - k[readout]).max() <= tolerance), len(chosen))
        if number == len(chosen):
            chosen.append(readout)
            for key in keys:
                known.setdefault(key, []).append(number)
        number_of.append(number)
    return k[chosen], number_of


# --- The program ----------------------------------------------------------------------------------------------------


def main(source: str, result: str) -> None:
    """Read a sequence and write its image readouts, and the hash of the file, as arrays in NumPy's format."""
    limit_memory()
    content = Path(source).read_bytes()
    readouts = image_readouts(content.decode("utf-8", "replace"))
    with Path(result).open("wb") as file:
        arrays: dict[str, Any] = vars(readouts) | {
            "remarks": np.array(readouts.remarks, str),
            "source": digest_of(content),
        }
        np.savez(file, **arrays)


def digest_of(content: bytes) -> str:
    """Hash of a sequence's content, and of the version of what is made of it."""
    return hashlib.sha256(RESULT_VERSION + content).hexdigest()


def limit_memory() -> None:
    """Limit the memory of this process, where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:  # noqa: BLE001 -- its text is the program's message
        reason = f"{type(error).__name__}: {error}" if str(error) else repr(error)
        sys.exit(re.sub(r"\s+", " ", reason)[:MAX_REASON])
