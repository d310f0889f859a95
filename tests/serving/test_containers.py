"""What can be checked of the containers without an engine: their files, and the chroot image made of an export."""

import fnmatch
import io
import json
import os
import re
import shlex
import subprocess
import tarfile
from pathlib import Path

import pytest

import main
from serving.module_loader import ModuleLoader

PROJECT = Path(main.__file__).parent
CODE = "/opt/code/python-ismrmrd-server"
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
DOCKERFILES = {  # and the folder from which each is built
    "Dockerfile": ".",
    "docker/cuda.dockerfile": ".",
    "custom/custom.dockerfile": "custom",
    ".devcontainer/devcontainer.dockerfile": ".",
}
SERVERS = [name for name in DOCKERFILES if "devcontainer" not in name]


def instructions(name):
    """Instructions of a Dockerfile as (word, rest); continuation lines are joined."""
    text = re.sub(r"^\s*#.*\n", "", (PROJECT / name).read_text("utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def values(name, word):
    return [rest for instruction, rest in instructions(name) if instruction == word]


def ignored(path):
    """Whether .dockerignore leaves a path out."""
    patterns = [line for line in (PROJECT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    parts = [*Path(path).parents, Path(path)]
    return any(
        fnmatch.fnmatch(str(part), pattern) or fnmatch.fnmatch(part.name, pattern.removeprefix("**/"))
        for part in parts
        for pattern in patterns
        if pattern.startswith("**/") or fnmatch.fnmatch(str(part), pattern)
    )


# ------------------------------------------------------------------------------------------------------- Dockerfiles
@pytest.mark.parametrize("name", DOCKERFILES)
def test_what_is_copied_is_there(name):
    for copied in values(name, "COPY"):
        *sources, target = shlex.split(copied)
        for source in sources:
            assert (PROJECT / DOCKERFILES[name] / source).exists(), f"{name}: {source}"
            assert source == "." or DOCKERFILES[name] != "." or not ignored(source), f"{name}: {source} is ignored"
        assert len(sources) == 1 or target.endswith("/")


@pytest.mark.parametrize("name", SERVERS)
def test_command_line_is_one_that_the_server_takes(name):
    (command,) = values(name, "CMD")
    python, script, *arguments = json.loads(command)  # the form without a shell, so that signals reach the server
    assert (python, script) == ("python3", "main.py")
    parsed = main.parse_arguments(arguments)
    assert (parsed.host, parsed.port) == ("0.0.0.0", 9002)
    folders = [PROJECT, PROJECT / DOCKERFILES[name]]
    assert ModuleLoader(folders).find(parsed.defaultConfig) is not None
    for exposed in values(name, "EXPOSE"):
        assert int(exposed) == parsed.port


@pytest.mark.parametrize("name", ["Dockerfile", "docker/cuda.dockerfile"])
def test_server_images(name):
    assert values(name, "WORKDIR") == [CODE]
    assert values(name, "EXPOSE") == ["9002"]
    assert values(name, "USER") == ["1000"]
    assert "." in values(name, "COPY")[-1].split()


@pytest.mark.parametrize("name", DOCKERFILES)
def test_packages_come_from_pinned_files(name):
    for command in values(name, "RUN"):
        for installed in re.findall(r"pip install ([^&]*)", command):
            assert re.fullmatch(r'--no-cache-dir -r "?\S*requirements\S*\.txt"?\s*', installed), installed
        if "apt-get" in command:
            assert "--no-install-recommends" in command
            assert "rm -rf /var/lib/apt/lists/*" in command


def requirements(path):
    """Requirements of a file and of those that it names."""
    for line in (line.partition("#")[0].strip() for line in path.read_text("utf-8").splitlines()):
        if line.startswith("-r "):
            yield from requirements(path.parent / line[3:].strip())
        elif line:
            yield line


@pytest.mark.parametrize(
    "name",
    [
        "requirements.txt",
        "requirements-fftw.txt",
        "requirements-mrd2.txt",
        "requirements-test.txt",
        "docker/requirements-cuda12.txt",
        "docker/requirements-cuda11.txt",
    ],
)
def test_every_requirement_is_pinned(name):
    found = list(requirements(PROJECT / name))
    assert found
    for line in found:
        requirement = line.partition(";")[0]  # what stands behind says on which machines
        assert re.fullmatch(r"[A-Za-z0-9_.-]+(\[\w+\])?==[0-9][0-9A-Za-z.]*", requirement), line


def test_images_have_what_runs_and_not_what_develops():
    for path in ("main.py", "requirements.txt", "configs", "seq_meta", "custom/filter.py",
                 "docker/requirements-cuda12.txt", "start-fire-python-server.sh"):  # fmt: skip
        assert not ignored(path), path
    for path in (".git/config", ".venv/bin/python", "tests/conftest.py", "demo/a.png", "a.h5", "custom/a.h5",
                 "__pycache__/main.pyc", "custom/__pycache__/x.pyc", "chroot.img"):  # fmt: skip
        assert ignored(path), path


def test_custom_image_stands_on_the_image_that_the_script_builds():
    assert values("custom/custom.dockerfile", "ARG") == ["BASE=mrd-recon-server"]
    assert "tag=mrd-recon-server " in (PROJECT / "docker" / "build-image.sh").read_text()
    assert values("custom/custom.dockerfile", "COPY")[0].endswith(f"{CODE}/")


def test_devcontainer():
    described = json.loads((PROJECT / ".devcontainer" / "devcontainer.json").read_text("utf-8"))
    folder = PROJECT / ".devcontainer"
    assert (folder / described["build"]["dockerfile"]).is_file()
    assert (folder / described["build"]["context"]).resolve() == PROJECT
    assert described["forwardPorts"] == [9002]
    added = [command for command in values(".devcontainer/devcontainer.dockerfile", "RUN") if "useradd" in command]
    assert described["remoteUser"] in added[0].split()


@pytest.mark.parametrize("name", ["environment.yml", "environment_windows.yml"])
def test_conda_environments_install_the_pinned_file(name):
    lines = [line.strip() for line in (PROJECT / name).read_text("utf-8").splitlines() if line and line[0] != "#"]
    assert "name: mrd" in lines
    assert lines[-1] == "- -r requirements.txt"
    assert [line for line in lines if re.match(r"- python\W", line)] == ["- python=3.12"]


# ------------------------------------------------------------------------------------------------------- the scripts
FAKE_DOCKER = """#!/bin/sh
echo "$@" >>"{log}"
case $1 in
    create) echo 0123abc ;;
    export) cp "{archive}" "$3" ;;
esac
"""


@pytest.fixture
def fake_docker(tmp_path):
    """A program that does what the scripts need of docker, and writes down what it was asked for."""
    archive = tmp_path / "export of it.tar"
    with tarfile.open(archive, "w") as tar:
        for path, content, mode in (("opt/code/main.py", b"print(1)\n", 0o644), ("bin/run me", b"x" * 70000, 0o755),
                                    (".dockerenv", b"", 0o644)):  # fmt: skip
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode, entry.uid = len(content), mode, 1000
            tar.addfile(entry, io.BytesIO(content))
        link = tarfile.TarInfo("bin/link")
        link.type, link.linkname = tarfile.SYMTYPE, "run me"
        tar.addfile(link)
    program = tmp_path / "docker"
    program.write_text(FAKE_DOCKER.format(log=tmp_path / "asked", archive=archive))
    program.chmod(0o755)
    return program


def run(script, *arguments, cwd, **variables):
    return subprocess.run(
        ["sh", PROJECT / "docker" / script, *map(str, arguments)],
        cwd=cwd, env=os.environ | variables, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def asked(folder):
    return (folder / "asked").read_text().splitlines()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [([], "build -t mrd-recon-server -f Dockerfile ."),
     (["cuda"], "build -t mrd-recon-server-cuda --build-arg CUDA=12 -f docker/cuda.dockerfile ."),
     (["cuda11"], "build -t mrd-recon-server-cuda11 --build-arg CUDA=11 -f docker/cuda.dockerfile ."),
     (["cpu", "my/tag:1"], "build -t my/tag:1 -f Dockerfile .")],
)  # fmt: skip
def test_build_image(fake_docker, tmp_path, arguments, expected):
    done = run("build-image.sh", *arguments, cwd=tmp_path, DOCKER=str(fake_docker))
    assert done.returncode == 0, done.stderr
    assert asked(tmp_path) == [expected]


def test_build_image_knows_three_kinds(tmp_path):
    done = run("build-image.sh", "gpu", cwd=tmp_path, DOCKER="false")
    assert (done.returncode, "expected cpu, cuda or cuda11" in done.stderr) == (2, True)


def in_image(image, command):
    return subprocess.run(
        ["debugfs", "-R", command, image], env=os.environ | {"PATH": PATH}, capture_output=True, check=True
    ).stdout


def test_chroot_image_holds_the_files(fake_docker, tmp_path):
    output = tmp_path / "my images" / "server.img"
    output.parent.mkdir()
    done = run("make-chroot-image.sh", "-f", 5, "mrd-recon-server", output, cwd=tmp_path, DOCKER=str(fake_docker))
    assert done.returncode == 0, done.stderr
    assert asked(tmp_path)[0] == "create mrd-recon-server"
    assert asked(tmp_path)[-1] == "rm 0123abc"
    assert list(output.parent.iterdir()) == [output]  # nothing else is left
    assert in_image(output, "cat /opt/code/main.py") == b"print(1)\n"
    assert in_image(output, 'cat "/bin/run me"') == b"x" * 70000
    assert re.search(r"Mode:\s+0755[\s\S]*User:\s+1000\s", in_image(output, 'stat "/bin/run me"').decode())
    assert b'Fast link dest: "run me"' in in_image(output, "stat /bin/link")
    top = in_image(output, "ls /").decode()
    assert {"dev", "proc", "sys", "tmp"} <= set(top.split())
    assert ".dockerenv" not in top
    assert "share" in in_image(output, "ls /tmp").decode()
    assert "has_journal" in in_image(output, "show_super_stats -h").decode()  # what makes it ext3
    assert output.stat().st_size % (1 << 20) == 0


def test_chroot_image_of_a_size_from_an_archive(fake_docker, tmp_path):
    done = run("make-chroot-image.sh", "-s", 30, tmp_path / "export of it.tar", "a.img", cwd=tmp_path, DOCKER="false")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.img").stat().st_size == 30 << 20


def test_zip_holds_the_image(fake_docker, tmp_path):
    import zipfile

    done = run("make-chroot-image.sh", "-s", 20, "export of it.tar", "a b.zip", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tmp_path / "a b.zip") as file:
        assert [(entry.filename, entry.file_size) for entry in file.infolist()] == [("a b.img", 20 << 20)]


def test_tar_holds_the_bare_files(fake_docker, tmp_path):
    done = run("make-chroot-image.sh", "image:tag", "out.tar", cwd=tmp_path, DOCKER=str(fake_docker))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.tar").read_bytes() == (tmp_path / "export of it.tar").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [([], "expected [-s SIZE]"), (["a"], "expected [-s SIZE]"), (["a", "b.iso"], "ends in .img, .zip or .tar"),
     (["-s", "big", "a", "b.img"], "-s big: expected a whole number"), (["a", "no/b.img"], "there is no folder no"),
     (["-f", "-1", "a", "b.img"], "-f -1: expected a whole number"), (["-x", "a", "b.img"], "expected [-s SIZE]")],
)  # fmt: skip
def test_wrong_command_lines_say_what_is_wrong(tmp_path, arguments, said):
    done = run("make-chroot-image.sh", *arguments, cwd=tmp_path, DOCKER="false")
    assert done.returncode == 2
    assert said in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_fails_leaves_nothing_behind(fake_docker, tmp_path):
    before = {*tmp_path.iterdir(), tmp_path / "asked"}
    for arguments in (["-s", "0", "export of it.tar", "a.img"], ["not there", "a.img"]):
        done = run("make-chroot-image.sh", *arguments, cwd=tmp_path, DOCKER="false")
        assert done.returncode not in (0, 2)
        assert {*tmp_path.iterdir(), tmp_path / "asked"} == before
