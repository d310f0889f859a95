"""The client's output file: the earlier groups are as they were whatever happens, and what came can be read."""

import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import h5py
import ismrmrd
import numpy as np
import pytest

import client
import recorder
from conftest import bytes_of, header_xml, make_acquisition, make_header, make_image, write_mrd_file
from constants import MessageId
from mrdio.h5groups import MrdFileError
from mrdio.mrdfile import MrdReader
from sending import clientsession
from sending.outputfile import PartFile, check_output, join, join_command, join_in_process
from server_process import PROJECT


@pytest.fixture
def output(tmp_path):
    """An output file with an earlier group, in a folder of its own."""
    folder = tmp_path / "output"
    folder.mkdir()
    return write_mrd_file(folder / "out.h5", [make_image(i) for i in range(3)], "earlier", header_xml())


def part_of(output, *images):
    part = PartFile(output, header_xml())
    for image in images:
        part.write(MessageId.ISMRMRD_IMAGE, image)
    part.close()
    return part.path


def numbers(path, group):
    with MrdReader(path, group) as reader:
        return [image.image_index for image in reader.images()]


# ---- signals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signum", client.ENDING_SIGNALS)
def test_a_signal_while_the_client_is_being_loaded_is_an_error_in_a_line(signum, tmp_path):
    (tmp_path / "ismrmrd.py").write_text(f"import os\nos.kill(os.getpid(), {int(signum)})\nraise SystemExit(99)")
    done = subprocess.run(
        [sys.executable, client.__file__, "raw.h5"], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    why = "interrupted" if signum == signal.SIGINT else f"ended by {signum.name}"
    assert (done.returncode, done.stderr) == (128 + signum, f"error: {why}\n")


def test_ignored_signals_stay_ignored():
    before = {signum: signal.getsignal(signum) for signum in client.ENDING_SIGNALS}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        client.interrupt_on_signals()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        with pytest.raises(client.Interrupted):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # it may end in peace
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


# ---- joining ---------------------------------------------------------------------------------------------------------


def test_a_run_joins_the_earlier_groups(output):
    part = part_of(output, make_image(7), make_image(8, dtype=np.complex64, meta={"a": "b"}))
    join(part, output, "run")
    join(part_of(output, make_image(9)), output, "run")  # a group that is there already is kept
    assert numbers(output, "earlier") == [0, 1, 2]
    assert sorted(numbers(output, "run")) == [7, 8, 9]
    with MrdReader(output, "run") as reader:
        assert reader.header_xml == header_xml()
        (second,) = (image for image in reader.images() if image.image_index == 8)
    assert second.data.dtype == np.complex64
    assert second.meta["a"] == "b"
    assert list(output.parent.iterdir()) == [output]


def test_runs_that_join_one_output_at_the_same_time_are_all_there(output):
    groups = [f"run{number}" for number in range(3)]
    parts = [part_of(output, make_image(number)) for number in range(3)]
    threads = [
        threading.Thread(target=join_in_process, args=(part, output, group))
        for part, group in zip(parts, groups, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers(output, "earlier") == [0, 1, 2]
    assert [numbers(output, group) for group in groups] == [[0], [1], [2]]
    assert list(output.parent.iterdir()) == [output]


def test_a_link_stays_a_link_and_the_mode_is_kept(output, tmp_path):
    output.chmod(0o640)
    link = tmp_path / "link.h5"
    link.symlink_to(output)
    join(part_of(link, make_image(7)), link, "run")
    assert link.is_symlink()
    assert output.stat().st_mode & 0o777 == 0o640
    assert numbers(output, "run") == [7]
    assert numbers(output, "earlier") == [0, 1, 2]


def test_further_names_and_the_owner_of_the_output(output, caplog):
    if os.getuid() == 0:
        os.chown(output, 1234, 4321)
    output.chmod(0o664)
    before, further = output.stat(), output.with_name("further.h5")
    further.hardlink_to(output)
    join(part_of(output, make_image(7)), output, "run")
    after = output.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    assert f"{output} has further names (hard links)" in caplog.text
    with h5py.File(further) as file:
        assert list(file) == ["earlier"]


@pytest.mark.parametrize("stem", ["x" * 252, "ä" * 126])
def test_an_output_with_the_longest_name_gets_its_run(tmp_path, stem):
    output = tmp_path / f"{stem}.h5"
    check_output(output, "run")
    for group in ("run", "next"):
        join(part_of(output, make_image(7)), output, group)
    assert numbers(output, "next") == [7]
    assert list(tmp_path.iterdir()) == [output]


def test_the_command_that_joins_works_from_everywhere(output, tmp_path):
    part = part_of(output, make_image(7))
    subprocess.run(join_command(part, output, "-run"), shell=True, cwd=tmp_path, env={"PATH": ""}, check=True)
    assert numbers(output, "-run") == [7]


def test_a_file_that_another_program_writes_is_left_alone(output):
    before, part = output.read_bytes(), part_of(output, make_image(7))
    with output.open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)  # as HDF5 does
        with pytest.raises(MrdFileError, match="open for writing in another program"):
            join_in_process(part, output, "run")
    assert output.read_bytes() == before
    with h5py.File(output):  # readers are in nobody's way
        join_in_process(part, output, "run")
    assert numbers(output, "run") == [7]


def test_no_other_program_can_write_into_the_output_that_is_being_replaced(output, monkeypatch):
    replace = Path.replace

    def write_first(path, target):
        with pytest.raises(OSError, match="lock"), h5py.File(output, "r+") as file:
            file["analysis"] = [1, 2, 3]  # would be gone with the earlier file
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", write_first)
    join(part_of(output, make_image(7)), output, "run")
    assert numbers(output, "run") == [7]


def test_a_run_that_is_joined_twice_at_the_same_time_is_there_once(output):
    part, failures = part_of(output, *(make_image(number) for number in range(200))), []

    def join_it():
        try:
            join_in_process(part, output, "run")
        except MrdFileError as error:
            failures.append(str(error))

    threads = [threading.Thread(target=join_it) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers(output, "run") == list(range(200))
    assert failures == [f"there is no {part}: it has been put into an output already, or been moved"]


def test_a_stream_that_a_killed_process_has_joined_but_not_removed_is_not_joined_again(output):
    part = part_of(output, make_image(7))
    copy = shutil.copy2(part, output.with_name("copy"))
    join(part, output, "run")
    copy.rename(part)
    with pytest.raises(MrdFileError, match=r"is in group 'run' of .* already"):
        join(part, output, "run")
    assert numbers(output, "run") == [7]
    assert part.exists()


def test_a_message_that_broke_off_is_left_out(output, caplog):
    part = output.with_name("out.part.mrd")
    part.write_bytes(bytes_of(make_header(), make_image(7), make_image(8))[:-5])
    join(part, output, "run")
    assert numbers(output, "run") == [7]
    assert "breaks off in its last message" in caplog.text


def test_what_is_no_stream_is_kept(output):
    before, part = output.read_bytes(), part_of(output, make_image(7))
    with part.open("ab") as file:
        file.write(b"\xff\xff\xff\xff")
    with pytest.raises(MrdFileError, match="message identifier 65535"):
        join_in_process(part, output, "run")
    assert output.read_bytes() == before
    assert part.exists()
    assert set(output.parent.iterdir()) == {output, part}


def test_attributes_that_grow_in_writing_are_kept(output):
    long = ismrmrd.Meta({"UnreadableAttributes": "<" * (2 << 20)})  # four times as long as XML
    image = make_image(7)
    image.meta = long
    join(part_of(output, image), output, "run")
    with MrdReader(output, "run") as reader:
        assert next(reader.images()).meta == long


def test_warnings_of_the_process_that_joins_are_logged(output, caplog):
    caplog.set_level(logging.WARNING)
    join_in_process(part_of(output, make_image(1), make_image(2, (1, 1, 3, 3))), output, "run")
    assert "another size or type" in caplog.text


# ---- the client ------------------------------------------------------------------------------------------------------


def test_a_session_that_cannot_begin_touches_nothing(output, monkeypatch, tmp_path):
    before = output.read_bytes(), output.stat().st_mtime_ns
    raw = write_mrd_file(tmp_path / "raw.h5", [make_acquisition(0)], xml=header_xml())
    monkeypatch.setattr(clientsession, "CONNECT_PATIENCE", 0.1)
    with pytest.raises(client.ClientError, match="no server answers"):
        client.run(client.ClientOptions(raw, output=output, port=1))
    assert (output.read_bytes(), output.stat().st_mtime_ns) == before
    assert list(output.parent.iterdir()) == [output]


def test_an_output_that_no_file_can_be_made_beside_is_refused(tmp_path):
    with pytest.raises(MrdFileError, match=r"cannot be written: .*Not a directory"):
        check_output(write_mrd_file(tmp_path / "file", [], xml=header_xml()) / "out.h5", "run")


def test_an_interrupted_run_from_python_says_where_it_is_kept(output, server, monkeypatch, tmp_path):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    running = server(module_folders=(PROJECT,))
    before = output.read_bytes()
    source = write_mrd_file(tmp_path / "images.h5", [make_image(i) for i in range(4)], xml=header_xml())
    monkeypatch.setattr(clientsession, "join_in_process", interrupted)
    with pytest.raises(KeyboardInterrupt) as caught:
        client.run(client.ClientOptions(source, output=output, out_group="run", port=running.port))
    assert output.read_bytes() == before
    (part,) = output.parent.glob("*.part-*.mrd")
    assert str(part) in caught.value.__notes__[0]
    join(part, output, "run")
    assert len(numbers(output, "run")) == 4


def test_the_command_that_joins_needs_the_stream(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["recorder.py", "-o", "out.h5"])
    with pytest.raises(SystemExit, match="2"):
        recorder.main()
    assert "-o needs the stream that is to be put into it" in capsys.readouterr().err
