"""The notebook runs in a kernel of its own, shows what it says, and is stored with its outputs."""

import nbformat
import pytest

from server_process import PROJECT
from tools.notebook import execute

TOUR = PROJECT / "doc" / "tour.ipynb"
CHECKS = """
def like_the_full_scan(image):
    return np.corrcoef(image.ravel(), plain.ravel())[0, 1]

def moving(series):
    return (series / series.mean()).var(axis=0).max()

def ringing(image):  # in a part of the brain where the phantom is even
    return image[90:100, 40:60].std() / image.mean()

def steepest(image):
    return np.abs(np.diff(image, axis=0)).max() / image.mean()

assert like_the_full_scan(zeros) < 0.95 < like_the_full_scan(grappa)
assert shared.shape == (17, 96, 96) and tfd.shape == (47, 96, 96)
assert moving(tfd) > 1.3 * moving(shared)
assert ringing(hanning[0]) < 0.5 * ringing(box[0])
assert steepest(box[0]) < 0.7 * steepest(plain[0])
assert Path.cwd() == folder and PROJECT not in folder.parents
"""


def kinds(notebook):
    """Output of each code cell: streams, in no order, and the forms in which pictures and values are given."""
    cells = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    return [
        (
            {output.name for output in outputs if "name" in output},
            [sorted(output.data) for output in outputs if "data" in output],
        )
        for outputs in cells
    ]


@pytest.fixture(scope="module")
def tour():
    return execute(TOUR, CHECKS)


def test_stored_outputs_are_those_that_the_cells_give(tour):
    stored = nbformat.read(TOUR, 4)
    assert kinds(stored) == kinds(tour)
    forms = [form for _, outputs in kinds(tour) for output in outputs for form in output]
    assert (forms.count("image/png"), forms.count("image/gif")) == (4, 1)
    assert TOUR.stat().st_size < 500_000


def test_nothing_of_the_machine_is_stored(tour):
    text = nbformat.writes(tour) + TOUR.read_text("utf-8")
    assert str(PROJECT) not in text
    assert "/tmp/" not in text
    assert "Traceback" not in text
