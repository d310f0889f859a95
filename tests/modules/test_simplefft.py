import ismrmrd
import numpy as np
import pytest

import constants
import simplefft
from cartesian_data import FakeConnection, make_header, make_image, make_readout, point_kspace, readouts_of


def run(items, header, config="simplefft"):
    connection = FakeConnection(items)
    simplefft.process(connection, config, header)
    assert connection.closed == 0  # ending the session is the server's business
    return connection


def test_image_of_points_with_two_coils_and_oversampling():
    header = make_header((16, 10, 1), (8, 10, 1), (16, 10, 5), (8, 10, 5), kspace_encoding_step_1=(0, 9, 5), bits=10)
    kspace = point_kspace([(1, 2, 1.0), (-2, -3, 0.5)], (10, 16), (16, 10))
    connection = run(readouts_of(np.stack([3 * kspace, 4j * kspace])), header)
    assert not connection.logs
    (image,) = connection.images
    expected = np.zeros((10, 8))
    expected[7, 5], expected[2, 2] = 1023, 512
    np.testing.assert_allclose(image.data[0, 0], expected, atol=0.5)
    head = image.getHead()
    assert (head.data_type, head.image_type) == (ismrmrd.DATATYPE_SHORT, ismrmrd.IMTYPE_MAGNITUDE)
    assert (head.image_index, head.image_series_index) == (1, 0)
    assert head.field_of_view[:] == [8, 10, 5]
    assert head.acquisition_time_stamp == 1006  # the readout through the k-space centre
    assert image.meta["WindowWidth"] == "1024"


def test_one_scale_for_a_series_and_images_while_the_scan_goes_on():
    header = make_header((8, 6, 1), kspace_encoding_step_1=(0, 5, 3), repetition=(0, 2, 0), slice=(0, 1, 0))
    connection = FakeConnection()
    sent_before = []

    def scan():
        for repetition, strength in enumerate((1.0, 0.5, 0.25)):
            for slice_, factor in ((0, 0.5), (1, 1.0)):
                kspace = point_kspace([(0, 0, strength * factor)], (6, 8), (8, 6))
                for readout in readouts_of(kspace, repetition=repetition, slice=slice_):
                    sent_before.append(len(connection.images))
                    yield readout

    connection.items = scan()
    simplefft.process(connection, "simplefft", header)
    assert not connection.logs
    peaks = [int(image.data[0, 0, 3, 4]) for image in connection.images]
    assert peaks == [2048, 4095, 1024, 2048, 512, 1024]
    assert [image.image_index for image in connection.images] == [1, 2, 3, 4, 5, 6]
    assert [(image.repetition, image.slice) for image in connection.images] == [
        (r, s) for r in range(3) for s in range(2)
    ]
    assert sent_before[-1] == 4  # two repetitions were out before the third was complete


def test_cardiac_phases_are_images_of_their_own():
    header = make_header((8, 6, 1))
    items = [
        readout
        for phase in (0, 1)
        for readout in readouts_of(point_kspace([(phase, 0, 1.0)], (6, 8), (8, 6)), phase=phase)
    ]
    connection = run(items, header)
    assert [image.phase for image in connection.images] == [0, 1]
    assert [int(np.argmax(image.data[0, 0, 3])) for image in connection.images] == [4, 5]


def test_much_brighter_repetitions_clip_with_a_warning():
    header = make_header((8, 6, 1), repetition=(0, 1, 0))
    items = [
        r for n in range(2) for r in readouts_of(point_kspace([(0, 0, 1.0 + 2 * n)], (6, 8), (8, 6)), repetition=n)
    ]
    connection = run(items, header)
    assert [int(image.data.max()) for image in connection.images] == [4095, 4095]
    assert "3.00 times" in connection.logs[0][1]


def test_an_empty_first_repetition_does_not_blacken_the_rest():
    header = make_header((8, 6, 1), repetition=(0, 1, 0))
    items = [r for n in range(2) for r in readouts_of(np.full((6, 8), n), repetition=n)]
    assert [int(image.data.max()) for image in run(items, header).images] == [0, 4095]


def test_undersampled_data_comes_with_a_warning():
    header = make_header((8, 8, 1), acceleration=2, kspace_encoding_step_1=(0, 7, 4))
    kspace = point_kspace([(1, 2, 1.0)], (8, 8), (8, 8))
    connection = run([make_readout(kspace[row], row=row) for row in range(0, 8, 2)], header)
    assert connection.logs[0][0] == constants.MRD_LOGGING_WARNING
    assert "4 of 8" in connection.logs[0][1]
    np.testing.assert_allclose(connection.images[0].data[0, 0, [2, 6], 5], 4095)  # the point and its alias


def test_waveforms_are_ignored():
    items = [ismrmrd.Waveform(), *readouts_of(np.ones((4, 4))), ismrmrd.Waveform()]
    assert len(run(items, make_header((4, 4, 1))).images) == 1


@pytest.mark.parametrize("items", [[], [make_readout(np.ones(4), flags=[ismrmrd.ACQ_IS_NOISE_MEASUREMENT])]])
def test_nothing_to_reconstruct_is_said(items):
    connection = run(items, make_header((4, 4, 1)))
    assert not connection.images
    assert "no imaging readouts" in connection.logs[0][1]


def test_wrong_input_raises():
    with pytest.raises(TypeError, match="raw data"):
        run([make_image(np.zeros((4, 4), np.int16))], make_header())
    with pytest.raises(ValueError, match="MRD header"):
        run([make_readout(np.ones(4))], "no header")
