"""ESPIRiT's coil maps against those of the phantom."""

import numpy as np
import pytest

import coils
import parallel_data as data
from recon import espirit
from recon.grappa import CalibrationError


def agreement(maps, scan):
    """Inner products with the true maps inside the object."""
    inside = scan.truth > 0.05
    return np.abs((maps[0].conj() * scan.maps).sum(axis=0))[inside]


@pytest.mark.parametrize(("rows", "columns", "number"), [(96, 80, 8), (63, 49, 5), (64, 64, 16)])
def test_maps(rows, columns, number):
    scan = data.scan(rows, columns, number)
    maps = espirit.coil_maps(data.centre(scan.full), (1, rows, columns))
    assert maps.shape == (1, number, 1, rows, columns)
    found = agreement(maps, scan)
    assert (found.mean(), found.min()) > (0.999, 0.99)
    norm = coils.rssq(maps[0])
    assert np.minimum(norm, np.abs(norm - 1)).max() < 1e-3


def test_maps_of_another_matrix_cover_the_same_field_of_view():
    scan, small = data.scan(96, 80), data.scan(64, 56)
    assert agreement(espirit.coil_maps(data.centre(scan.full), (1, 64, 56)), small).min() > 0.99


def test_maps_have_a_smooth_phase():
    scan = data.scan(128, 96)
    maps = espirit.coil_maps(data.centre(scan.full), (1, 128, 96))[0, :, 0]
    inside = scan.truth[0] > 0.05
    pairs = inside[1:] & inside[:-1]
    assert np.abs(np.diff(maps, axis=1)).max(axis=0)[pairs].max() < 0.15


def test_a_second_set_is_there_only_where_the_object_overlaps_itself():
    scan = data.scan(96, 80, wrap=1.25)
    maps = espirit.coil_maps(data.centre(scan.full), (1, 96, 80), sets=2)
    second = coils.rssq(maps[1, :, 0]) > 0.5
    edges = np.r_[0:8, 88:96]
    assert second[edges, 30:50].mean() > 0.5
    assert not second[16:80].any()
    assert np.abs((maps[0].conj() * maps[1]).sum(axis=0)).max() < 1e-3
    assert not espirit.coil_maps(data.centre(data.scan(96, 80).full), (1, 96, 80), 2)[1].any()


def test_partitions():
    kspace, density = data.volume((16, 24, 20), 6)
    maps = espirit.coil_maps(kspace[:, 3:13, 4:20], density.shape)[0]
    images = data.to_images(kspace)
    left = images - maps * coils.combine(images, maps)  # what no object with these maps explains
    assert np.linalg.norm(left) < 0.05 * np.linalg.norm(images)


def test_too_few_lines():
    scan = data.scan()
    with pytest.raises(CalibrationError, match=r"1 x 10 lines .* need at least 1 x 11 of 11"):
        espirit.coil_maps(data.centre(scan.full, 10), (1, 96, 80))
    for bad in (0, np.inf):
        with pytest.raises(CalibrationError, match="zero or not finite"), np.errstate(invalid="ignore"):
            espirit.coil_maps(data.centre(scan.full) * bad, (1, 96, 80))
