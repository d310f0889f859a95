"""The code in doc/ runs."""

import re

import ismrmrd
import numpy as np

from conftest import make_acquisition, make_header, make_waveform
from mrdio.testing import Recording
from server_process import PROJECT


def code_blocks(name):
    return re.findall(r"```python\n(.*?)```", (PROJECT / "doc" / name).read_text("utf-8"), re.DOTALL)


def run(code):
    names = {}
    exec(compile(code, "documentation", "exec"), names)
    return names


def test_smallest_module():
    smallest, *_ = code_blocks("modules.md")
    recording = Recording([make_acquisition(1), make_acquisition(2)])
    run(smallest)["process"](recording, {"parameters": {"scale": 2}}, make_header())
    images = recording.sent
    assert [image.image_index for image in images] == [1, 2]
    np.testing.assert_allclose(images[0].data[0, 0, 0], 2 * np.linalg.norm(make_acquisition(1).data, axis=0), rtol=1e-6)


def test_pipeline_of_a_module():
    _, pipeline, *_ = code_blocks("modules.md")
    names = run(pipeline)
    names["reconstruct"] = lambda items: (ismrmrd.Image.from_array(np.abs(item.data)) for item in items)
    recording = Recording([make_acquisition(1), make_acquisition(2)])
    names["process"](recording, "", make_header())
    assert len(recording.sent) == 2


def test_whitening_of_a_module():
    _, _, whitening, *_ = code_blocks("modules.md")
    names = run(whitening)
    names["reconstruct"] = lambda items: (ismrmrd.Image.from_array(np.abs(item.data)) for item in items)
    noise = make_acquisition(0, samples=100)
    noise.setFlag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
    recording = Recording([noise, make_acquisition(1)])
    names["process"](recording, "", make_header())
    (image,) = recording.sent
    assert not np.allclose(image.data, np.abs(make_acquisition(1).data), rtol=0.1)


def test_writing_a_metafile(monkeypatch, tmp_path):
    (tmp_path / "seq_meta").mkdir()
    monkeypatch.chdir(tmp_path)
    run(code_blocks("sequences.md")[0])
    assert [file.suffix for file in (tmp_path / "seq_meta").iterdir()] == [".mat"]


def test_fallback_of_a_module():
    made = list(run(code_blocks("modules.md")[4])["fallback"]([make_acquisition(1), make_waveform(1)], make_header()))
    expected = np.linalg.norm(np.fft.ifft(make_acquisition(1).data), axis=0)
    np.testing.assert_allclose(made[0].data[0, 0, 0], expected, rtol=1e-6)


def test_testing_without_a_server(capsys):
    run(code_blocks("modules.md")[3])
    assert capsys.readouterr().out == "(1, 1, 64, 64)\n"


def test_links_between_documents_lead_somewhere():
    for path in [PROJECT / "README.md", *(PROJECT / "doc").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text("utf-8")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_pictures_are_small_and_shown():
    """A picture that no document shows is left over; large ones make every clone slow."""
    documents = "".join(path.read_text("utf-8") for path in [PROJECT / "README.md", *(PROJECT / "doc").glob("*.md")])
    for path in (PROJECT / "doc" / "pictures").glob("*.png"):
        assert f"pictures/{path.name})" in documents, f"{path.name} is in no document"
        assert path.stat().st_size < 300_000, path.name
