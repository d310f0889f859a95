"""Positions and directions that are no numbers: an error, in place of images that lie nowhere."""

import math

import ismrmrd
import pytest

import mrdhelper
import rtspiral_bart_tvrecon
import simplefft
import simplenufft1arm
import spiral_xdgrasp_recon
from cartesian_data import FakeConnection, make_header, point_kspace, readouts_of
from conftest import make_image
from rtspiral_bart_tvrecon import TfdConfig
from serving import fallback
from simplenufft1arm import ViewSharingConfig
from spiral_sessions import Client, configure, small_scan
from spiral_xdgrasp_recon import XdConfig

FIELDS = ["position", "read_dir", "phase_dir", "slice_dir"]
SPIRAL = {simplenufft1arm: ViewSharingConfig, rtspiral_bart_tvrecon: TfdConfig, spiral_xdgrasp_recon: XdConfig}


@pytest.fixture(scope="module")
def spiral_scan(tmp_path_factory):
    return small_scan(tmp_path_factory.mktemp("meta"), 32, 8, readouts=40, coils=2)


def cartesian_scan():
    return make_header((8, 6, 1)), readouts_of(point_kspace([(0, 0, 1.0)], (6, 8), (8, 6)))


def spoiled(readouts, number, field, value):
    readouts[number].scan_counter = 17
    setattr(readouts[number], field, (0, value, 1))
    return readouts


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_error_names_readout_field_and_what_would_be_right(field, value):
    (readout, *_) = spoiled(cartesian_scan()[1], 0, field, value)
    said = rf"^readout 17 \(its scan_counter\): {field} is \(0, {value:g}, 1\); expected three finite numbers, zeros"
    for head in (readout, readout.getHead()):
        with pytest.raises(ValueError, match=said):
            mrdhelper.check_geometry(head)
        assert mrdhelper.broken_geometry(head) == [field]


def test_zeros_are_not_known_and_pass():
    assert mrdhelper.broken_geometry(ismrmrd.AcquisitionHeader()) == []
    mrdhelper.check_geometry(ismrmrd.ImageHeader())
    head = ismrmrd.AcquisitionHeader()
    head.position = head.read_dir = (3e38, 3e38, 3e38)  # their sum is a number in double precision
    mrdhelper.check_geometry(head)


@pytest.mark.parametrize("module", SPIRAL)
@pytest.mark.parametrize("number", [0, 9])
def test_spiral_reconstructions_refuse(spiral_scan, monkeypatch, module, number):
    configure(monkeypatch, SPIRAL[module], spiral_scan.trajectory.file.parent)
    client = Client(spoiled(list(spiral_scan.acquisitions()), number, "read_dir", math.nan))
    with pytest.raises(ValueError, match="read_dir is"):
        module.process(client, module.__name__, spiral_scan.header)


def test_cartesian_reconstruction_refuses():
    header, readouts = cartesian_scan()
    for number in range(6):
        spoiled(readouts, number, "position", math.nan)
    with pytest.raises(ValueError, match=r"readout 17 .*position is"):
        simplefft.process(FakeConnection(readouts), "simplefft", header)


def test_flow_of_images_that_lie_nowhere_is_refused():
    image = make_image()
    image.phase_dir = (math.nan, 0, 0)
    image.image_index = 3
    with pytest.raises(ValueError, match=r"^image 3: phase_dir is"):
        mrdhelper.update_img_header_from_raw(ismrmrd.ImageHeader(), image.getHead())


def test_fallback_image_says_that_its_place_is_not_known():
    header, readouts = cartesian_scan()
    kept = fallback.Kept(1 << 20)
    for readout in spoiled(spoiled(readouts, 3, "position", math.nan), 3, "read_dir", math.inf):
        kept.add(readout)
    (image,) = fallback.transformed(kept, header)
    assert not any(image.position)
    assert not any(image.read_dir)
    assert any(image.data.ravel())
