"""Headers, readouts and a recording connection that the tests of Cartesian modules share."""

import ismrmrd
import ismrmrd.xsd
import numpy as np

import constants


class FakeConnection:
    """Yields items, records what is sent."""

    def __init__(self, items=()):
        self.items = items
        self.images, self.logs, self.texts, self.closed = [], [], [], 0

    def __iter__(self):
        return iter(self.items)

    def dependency(self, kind):
        return None

    def send_image(self, image):
        self.images += [each for each in (image if isinstance(image, list) else [image]) if each is not None]

    def send_logging(self, level, text):
        self.logs.append((level, text))

    def info(self, text):
        self.send_logging(constants.MRD_LOGGING_INFO, text)

    def warn(self, text):
        self.send_logging(constants.MRD_LOGGING_WARNING, text)

    def send_text(self, text):
        self.texts.append(text)

    def send_close(self):
        self.closed += 1


def make_header(
    encoded=(16, 16, 1),
    recon=None,
    encoded_fov=None,
    recon_fov=None,
    vendor="Simulation",
    bits=None,
    trajectory="cartesian",
    acceleration=1,
    calibration=None,
    **limits,
):
    """MRD header; sizes and fields of view are (x, y, z), limits are (minimum, maximum, center)."""
    xsd = ismrmrd.xsd
    recon = recon or encoded
    encoded_fov = encoded_fov or tuple(map(float, encoded))
    recon_fov = recon_fov or encoded_fov

    def space(matrix, fov):
        (x, y, z), (a, b, c) = matrix, map(float, fov)
        return xsd.encodingSpaceType(
            matrixSize=xsd.matrixSizeType(x=x, y=y, z=z), fieldOfView_mm=xsd.fieldOfViewMm(x=a, y=b, z=c)
        )

    encoding = xsd.encodingType(
        trajectory=xsd.trajectoryType(trajectory),
        encodedSpace=space(encoded, encoded_fov),
        reconSpace=space(recon, recon_fov),
        encodingLimits=xsd.encodingLimitsType(
            **{name: xsd.limitType(minimum=a, maximum=b, center=c) for name, (a, b, c) in limits.items()}
        ),
        parallelImaging=xsd.parallelImagingType(
            accelerationFactor=xsd.accelerationFactorType(
                kspace_encoding_step_1=acceleration, kspace_encoding_step_2=1
            ),
            calibrationMode=None if calibration is None else xsd.calibrationModeType(calibration),
        ),
    )
    parameters = None
    if bits is not None:
        parameters = xsd.userParametersType(
            userParameterLong=[xsd.userParameterLongType(name="BitsStored", value=bits)]
        )
    return xsd.ismrmrdHeader(
        experimentalConditions=xsd.experimentalConditionsType(H1resonanceFrequency_Hz=1),
        acquisitionSystemInformation=xsd.acquisitionSystemInformationType(systemVendor=vendor),
        encoding=[encoding],
        userParameters=parameters,
    )


def make_readout(data, row=0, partition=0, center=None, flags=(), counter=1, **idx):
    """Acquisition with data [channel, sample] (or [sample]); the centre is the middle one unless given."""
    readout = ismrmrd.Acquisition.from_array(np.atleast_2d(np.asarray(data, dtype=np.complex64)))
    readout.center_sample = readout.number_of_samples // 2 if center is None else center
    readout.idx.kspace_encode_step_1, readout.idx.kspace_encode_step_2 = row, partition
    readout.scan_counter = counter
    readout.acquisition_time_stamp = 1000 + counter
    readout.position, readout.read_dir = (1, 2, 3), (1, 0, 0)
    readout.phase_dir, readout.slice_dir = (0, 1, 0), (0, 0, 1)
    for name, value in idx.items():
        setattr(readout.idx if hasattr(readout.idx, name) else readout, name, value)
    for flag in flags:
        readout.set_flag(flag)
    return readout


def indices(size):
    """k-space indices of a matrix, 0 in the middle."""
    return np.arange(size) - size // 2


def point_kspace(points, shape, fov):
    """K-space [row, column] of points (x, y, amplitude), by the direct sum; fov is (x, y) in the units of x and y."""
    ky, kx = np.meshgrid(indices(shape[0]) / fov[1], indices(shape[1]) / fov[0], indexing="ij")
    return sum(amplitude * np.exp(-2j * np.pi * (kx * x + ky * y)) for x, y, amplitude in points)


def readouts_of(kspace, first_row=0, **kwargs):
    """Readouts of a k-space [row, column] or [channel, row, column], in the order of its rows."""
    kspace = kspace if kspace.ndim == 3 else kspace[np.newaxis]
    return [
        make_readout(kspace[:, row], row=row + first_row, counter=row + 1, **kwargs) for row in range(kspace.shape[1])
    ]


def make_image(data, series=0, index=1, image_type=ismrmrd.IMTYPE_MAGNITUDE, meta=None, read_dir=(1, 0, 0)):
    """Image with pixels [y, x] or [channel, z, y, x]."""
    data = np.asarray(data)
    image = ismrmrd.Image(
        data=np.ascontiguousarray(data[(np.newaxis,) * (4 - data.ndim)]), meta=ismrmrd.Meta(meta or {})
    )
    image.image_series_index, image.image_index, image.image_type = series, index, image_type
    image.read_dir, image.phase_dir, image.slice_dir = read_dir, (0, 1, 0), (0, 0, 1)
    return image
