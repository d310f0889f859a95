"""Fields from the scan's own data: found where there is one, none where there is none, in every module."""

import dataclasses
import threading

import numpy as np
import pytest

import rtspiral_bart_tvrecon
import rtspiral_live_tvrecon
import simplenufft
import simplenufft1arm
from recon import fieldlearning, noncartesian
from recon.autofield import AutoFieldMap, NoSignalError, estimate
from server_process import wait_until
from simulation import trajectories
from simulation.fields import OffResonance
from simulation.spiraldesign import SpiralDesign, design_spiral
from simulation.spiralsimulation import Scan, simulate
from spiral_sessions import Client, configure, error

MATRIX, ARMS = 48, 34
LINEAR = OffResonance(60, 220, -150)
VIALS = (-60.0, 20.0, 110.0)
NONE = OffResonance()


@pytest.fixture(scope="module")
def trajectory():
    return design_spiral(SpiralDesign(resolution=0.256 / MATRIX, interleaves=4, arms=ARMS))


def scan_of(trajectory, readouts=ARMS, **options):
    default = {"coils": 4, "noise": 0.002, "still": True, "waveforms": False, "carried": "1/m"}
    return simulate(trajectory, Scan(readouts=readouts, **default | options))


def slab_of(simulation):
    ((slab,),) = noncartesian.sort_repetitions(simulation.acquisitions(), simulation.header, [])
    return slab


def estimate_of(simulation, begin=0):
    arms = slab_of(simulation).planes[0]
    seconds = arms.dwell * (np.arange(arms.k.shape[1]) - begin)
    return estimate(arms.plan, arms.samples, np.linalg.norm(arms.k, axis=-1), seconds[np.newaxis])


def rms_of(wrong, simulation):
    weights = simulation.truth.frame([0], MATRIX) ** 2
    return np.sqrt((weights * wrong**2).sum() / weights.sum())


@pytest.mark.parametrize("coils", [1, 8])
@pytest.mark.parametrize("field", [LINEAR, OffResonance(-90), OffResonance(0, -200, 100)], ids=str)
def test_linear_field_is_found_with_its_sign(trajectory, field, coils):
    simulation = scan_of(trajectory, off_resonance=field, coils=coils)
    found = estimate_of(simulation)
    assert found.useful
    truth = simulation.truth.field_map(MATRIX)
    assert rms_of(found.hertz - truth, simulation) < 0.25 * rms_of(truth, simulation)
    np.testing.assert_allclose(found.linear, (field.centre, field.across, field.down), atol=40)


def test_fields_of_regions_are_found(trajectory):
    """Of three ellipses with frequencies of their own, which no linear field fits."""
    simulation = scan_of(trajectory, vials=VIALS)
    found = estimate_of(simulation)
    truth = simulation.truth.field_map(MATRIX)
    assert found.useful
    assert rms_of(found.hertz - truth, simulation) < 0.5 * rms_of(truth, simulation)


@pytest.mark.parametrize("options", [{}, {"coils": 1}, {"noise": 0.03}, {"readouts": 13}, {"point": (20, -30)},
                                     {"vials": (0.0, 0.0, 0.0)}, {"still": False}], ids=str)  # fmt: skip
def test_where_there_is_no_field_none_is_corrected(trajectory, options):
    found = estimate_of(scan_of(trajectory, **options))
    assert not found.useful
    assert "nothing is corrected" in str(found)


@pytest.mark.parametrize(("kind", "middle"), [("radial", True), ("rosette", False)])
@pytest.mark.parametrize("field", [NONE, LINEAR], ids=["none", "linear"])
def test_arms_that_do_not_begin_in_the_centre_are_left_alone(kind, middle, field):
    design = SpiralDesign(resolution=0.256 / 40, interleaves=64, ordering="linear")
    simulation = scan_of(trajectories.design(kind, design), 64, kind="other", off_resonance=field)
    samples = slab_of(simulation).planes[0].k.shape[1]
    found = estimate_of(simulation, samples // 2 if middle else 0)
    assert not found.useful
    assert "begin in the centre" in str(found)


def test_no_signal_is_no_field(trajectory):
    arms = slab_of(scan_of(trajectory)).planes[0]
    with pytest.raises(NoSignalError, match="there is no signal"):
        estimate(arms.plan, 0 * arms.samples, np.linalg.norm(arms.k, axis=-1), np.arange(arms.k.shape[1])[np.newaxis])


def test_map_is_kept_for_each_plane_and_changes_only_if_it_matters(trajectory):
    heads = [item.getHead() for item in scan_of(trajectory, slices=2).acquisitions()][:2]
    simulation = scan_of(trajectory, off_resonance=LINEAR)
    found = estimate_of(simulation)
    field_map = AutoFieldMap()
    assert field_map.is_due(heads[0])
    assert field_map.keep(heads[0], found)
    assert not field_map.is_due(heads[0])
    assert field_map.is_due(heads[1])
    assert field_map.on_grid(heads[1], (MATRIX, MATRIX), (256, 256)) is None
    assert not field_map.keep(heads[0], dataclasses.replace(found, hertz=found.hertz + 1))
    np.testing.assert_array_equal(field_map.on_grid(heads[0], (MATRIX, MATRIX), (256, 256)), found.hertz)
    assert field_map.keep(heads[0], dataclasses.replace(found, hertz=found.hertz + 60))
    assert field_map.keep(heads[0], estimate_of(scan_of(trajectory)))
    assert field_map.on_grid(heads[0], (MATRIX, MATRIX), (256, 256)) is None


def test_map_is_not_that_of_another_place(trajectory):
    """An interactive scan moves a slice, whose counter stays; breathing moves it a little."""
    head = next(iter(scan_of(trajectory).acquisitions())).getHead()
    found = estimate_of(scan_of(trajectory, off_resonance=LINEAR))
    field_map = AutoFieldMap()
    field_map.keep(head, found)
    head.position = (0, 0, 3)
    assert field_map.on_grid(head, (MATRIX, MATRIX), (256, 256)) is not None
    assert not field_map.is_due(head)
    head.position = (0, 0, 40)
    assert field_map.on_grid(head, (MATRIX, MATRIX), (256, 256)) is None
    assert field_map.is_due(head)
    assert field_map.keep(head, found)


MODULES = {
    simplenufft: {},
    simplenufft1arm: {"arms_per_frame": ARMS, "window_shift": 17},
    rtspiral_bart_tvrecon: {
        "backend": "native", "num_iter": 3, "arms_per_frame": 34, "fov_oversampling": 1.0, "num_chunks": 1
    },
    rtspiral_live_tvrecon: {"arms_per_frame": 17, "num_iter": 2, "calibration_arms": 51},
}  # fmt: skip


def run(monkeypatch, folder, module, simulation, items=None, **settings):
    (config,) = (
        each for each in vars(module).values()
        if isinstance(each, type) and hasattr(each, "FILE") and each.__module__ == module.__name__
    )  # fmt: skip
    configure(monkeypatch, config, folder, reconstruction=MODULES[module] | settings)
    client = Client(simulation.items() if items is None else items)
    module.process(client, "", simulation.header)
    return client


@pytest.fixture
def learned_at_once(monkeypatch):
    """View-sharing learns in the background; here the readouts wait for it."""
    begun = fieldlearning.FieldLearner.add

    def add(learner, readout):
        begun(learner, readout)
        for here in learner._slices.values():
            if here.learning is not None:
                here.learning.exception()

    monkeypatch.setattr(fieldlearning.FieldLearner, "add", add)


@pytest.mark.usefixtures("learned_at_once")
@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_modules_learn_the_field_and_correct_it(trajectory, monkeypatch, tmp_path, module):
    options = {"readouts": 102, "noise": 0.0}
    plain, disturbed = (scan_of(trajectory, **options, off_resonance=field) for field in (NONE, LINEAR))
    wanted, blurred, sharp = (
        run(monkeypatch, tmp_path, module, simulation, field_map=setting)
        for simulation, setting in ((plain, ""), (disturbed, ""), (disturbed, "auto"))
    )
    assert len(sharp.images) == len(wanted.images)
    assert error(sharp.pixels[-1], wanted.pixels[-1]) < 0.4 * error(blurred.pixels[-1], wanted.pixels[-1])
    assert sum("off-resonance by the scan's own data" in text for text in sharp.texts) == 1
    untouched = run(monkeypatch, tmp_path, module, plain, field_map="auto")
    np.testing.assert_allclose(untouched.pixels, wanted.pixels)


@pytest.mark.usefixtures("learned_at_once")
@pytest.mark.parametrize(("length", "shift"), [(34, 17), (34, 10), (20, 27)])
def test_frames_go_on_while_the_new_grids_fill(trajectory, monkeypatch, tmp_path, length, shift):
    """Neither number nor times nor brightness of frames change when the corrected ones take over."""
    disturbed = scan_of(trajectory, 300, noise=0.0, slices=2, off_resonance=LINEAR)
    windows = {"arms_per_frame": length, "window_shift": shift}
    blurred, sharp = (
        run(monkeypatch, tmp_path, simplenufft1arm, disturbed, field_map=setting, **windows) for setting in ("", "auto")
    )
    stamps = [[(image.slice, image.acquisition_time_stamp) for image in one.images] for one in (blurred, sharp)]
    assert stamps[0] == stamps[1]
    levels = sharp.pixels.mean(axis=(1, 2)) / blurred.pixels.mean(axis=(1, 2))
    np.testing.assert_allclose(levels, 1, atol=0.1)
    changed = np.abs(sharp.pixels - blurred.pixels).max(axis=(1, 2)) > 0.02 * blurred.pixels.max()
    assert changed.any()
    assert not changed[:2].any()


def test_scan_does_not_wait_for_the_field(trajectory, monkeypatch, tmp_path):
    """Its images come while the field is still being learned; the last readout comes after it."""
    gate = threading.Event()
    monkeypatch.setattr(fieldlearning.FieldLearner, "_learn", lambda learner, readouts: (gate.wait(), None))
    simulation = scan_of(trajectory, 102, off_resonance=LINEAR)
    client = Client([])

    def items():
        for number, item in enumerate(simulation.items(), start=1):
            if number == 102:
                assert wait_until(lambda: len(client.images) == 4)
                gate.set()
            yield item

    client.items = items()
    configure(monkeypatch, simplenufft1arm.ViewSharingConfig, tmp_path,
              reconstruction=MODULES[simplenufft1arm] | {"field_map": "auto"})  # fmt: skip
    simplenufft1arm.process(client, "", simulation.header)
    assert len(client.images) == 5


@pytest.mark.usefixtures("learned_at_once")
def test_scan_goes_on_where_the_terms_do_not_fit_into_the_memory(trajectory, monkeypatch, tmp_path):
    checked = simplenufft1arm.check_memory
    monkeypatch.setattr(
        simplenufft1arm, "check_memory",
        lambda plan, *rest: checked(plan, *rest) if not hasattr(plan, "terms") else checked(plan, 10**9, *rest[1:]),
    )  # fmt: skip
    disturbed = scan_of(trajectory, 170, off_resonance=LINEAR)
    blurred, told = (run(monkeypatch, tmp_path, simplenufft1arm, disturbed, field_map=each) for each in ("", "auto"))
    np.testing.assert_array_equal(told.pixels, blurred.pixels)
    assert any("without the new field correction" in text and "MiB" in text for text in told.texts)


@pytest.mark.usefixtures("learned_at_once")
def test_scan_without_a_signal_has_its_images(trajectory, monkeypatch, tmp_path):
    """Of samples that are too small for single precision when they are squared."""
    simulation = scan_of(trajectory, 102, noise=0.0)
    items = [item for item in simulation.items() if hasattr(item, "data")]
    for item in items:
        item.data[:] *= 1e-30
    client = run(monkeypatch, tmp_path, simplenufft1arm, simulation, items, field_map="auto")
    assert len(client.images) == 5


def test_readouts_without_a_dwell_time_are_corrected_by_what_they_tell(trajectory, monkeypatch, tmp_path):
    """As those of some simulators: the field is that of a dwell time of 1 us, the images are right all the same."""
    images = []
    for field, setting in ((NONE, ""), (LINEAR, ""), (LINEAR, "auto")):
        simulation = scan_of(trajectory, off_resonance=field, noise=0.0)
        items = list(simulation.items())
        for item in items:
            item.sample_time_us = 0
        client = run(monkeypatch, tmp_path, simplenufft, simulation, items, field_map=setting)
        images.append(client.pixels)
    assert error(images[2], images[0]) < 0.4 * error(images[1], images[0])
    assert any("as if a sample took 1 us" in text for text in client.texts)


def test_concomitant_fields_are_taken_out_before(trajectory, monkeypatch, tmp_path):
    """At 0.55 T, 15 cm off the isocentre, they would be taken for off-resonance."""
    options = {"concomitant": True, "position": (0.0, 0.0, 150.0), "noise": 0.0}
    plain = run(monkeypatch, tmp_path, simplenufft, scan_of(trajectory, noise=0.0))
    both = scan_of(trajectory, off_resonance=LINEAR, **options)
    client = run(monkeypatch, tmp_path, simplenufft, both, field_map="auto")
    assert error(client.pixels, plain.pixels) < 0.03
    alone = run(monkeypatch, tmp_path, simplenufft, scan_of(trajectory, **options), field_map="auto")
    assert any("no off-resonance that blurs was found" in text for text in alone.texts)


@pytest.mark.usefixtures("learned_at_once")
def test_field_of_a_slice_that_has_moved_meanwhile_is_left(trajectory, monkeypatch, tmp_path):
    """It is learned from the last readouts before the move: no frame after it is corrected by it."""
    options = {"noise": 0.0, "off_resonance": LINEAR}
    items = list(scan_of(trajectory, 110, **options).items())
    for number, item in enumerate(items):
        item.position = (0, 0, 0 if number < 55 else 40)
    simulation = scan_of(trajectory, **options)
    uncorrected = run(monkeypatch, tmp_path, simplenufft1arm, simulation, items[55:], field_map="").pixels
    auto = run(monkeypatch, tmp_path, simplenufft1arm, simulation, items, field_map="auto")
    assert any("off-resonance by the scan's own data" in text for text in auto.texts)
    assert error(auto.pixels[-len(uncorrected) :], uncorrected) < 0.01


def test_stack_is_told_and_left(monkeypatch, tmp_path, trajectory):
    simulation = scan_of(trajectory, 2 * ARMS, partitions=2)
    client = run(monkeypatch, tmp_path, simplenufft, simulation, field_map="auto")
    assert len([text for text in client.texts if 'field_map = "auto" is for slices' in text]) == 1


@pytest.mark.parametrize("setting", ["", "auto"])
def test_frames_of_all_arms_where_readouts_bring_the_trajectory(trajectory, monkeypatch, tmp_path, setting):
    """How many that are is known when the first readouts have come."""
    settings = {"ignore_arms_per_frame": True, "field_map": setting}
    client = run(monkeypatch, tmp_path, simplenufft1arm, scan_of(trajectory), **settings)
    assert len(client.images) == 1


@pytest.mark.gpu
@pytest.mark.usefixtures("learned_at_once")
@pytest.mark.parametrize("module", [simplenufft1arm, rtspiral_live_tvrecon], ids=lambda module: module.__name__)
def test_images_of_the_gpu_have_the_field_corrected_that_the_cpu_learned(trajectory, monkeypatch, tmp_path, module):
    pytest.importorskip("cupy")
    disturbed = scan_of(trajectory, 136, noise=0.0, off_resonance=LINEAR)
    ours, theirs = (
        run(monkeypatch, tmp_path, module, disturbed, field_map="auto", gpu_device=device) for device in (-1, 0)
    )
    assert error(theirs.pixels[-1], ours.pixels[-1]) < 0.02
    assert any("off-resonance by the scan's own data" in text for text in theirs.texts)
