import base64
import json
import re
import shlex
import subprocess
import sys
from dataclasses import make_dataclass
from pathlib import Path

import pytest

from cartesian_data import FakeConnection
from checks.label import problems
from recon.configuration import declared, parameter
from recon.moduleparameters import read_parameters
from serving.module_loader import ModuleLoader
from tools import openrecon

PROJECT = Path(openrecon.__file__).parents[1]
MODULES = {"analyzeflow": [], "report": [], "invertcontrast": [], "filter": ["-M", str(PROJECT / "custom")]}


def check_label(label):
    """Check that a label keeps to the schema."""
    assert problems(label) == []


def check_entry(entry):
    """Check one parameter, in a label that is right otherwise."""
    label = openrecon.make_label("module", None, openrecon.App("x"))
    check_label({**label, "parameters": [entry]})


def run(*arguments):
    return subprocess.run(
        [sys.executable, PROJECT / "tools" / "openrecon.py", *arguments], capture_output=True, text=True, timeout=60
    )


# ---------------------------------------------------------------------------------------------------- whole labels
@pytest.mark.parametrize("module", MODULES)
def test_labels_of_the_projects_modules(module, tmp_path, capsys):
    arguments = [module, *MODULES[module], "--name", "My app", "--version", "1.2.3-beta", "--gpus", "1", "-o"]
    assert openrecon.main([*arguments, str(tmp_path / "label.json")]) == 0
    label = json.loads((tmp_path / "label.json").read_text("utf-8"))
    check_label(label)
    assert label["general"]["name"] == {"en": "My app"}
    assert (label["general"]["id"], label["general"]["version"]) == ("Myapp", "1.2.3-beta")
    assert label["reconstruction"]["can_use_gpu"] is True
    config = label["parameters"][0]
    assert (config["id"], config["default"], config["values"][0]["id"]) == ("config", module, module)


@pytest.mark.parametrize("module", ["analyzeflow", "report", "filter"])
def test_label_and_check_come_from_one_declaration(module):
    """What the label gives as defaults and limits is what the module takes, as text too; what is beyond, it refuses."""
    folders = [PROJECT, *map(Path, MODULES[module][1:])]
    declaration = openrecon.find_parameters(module, folders)
    label = openrecon.make_label(module, declaration, openrecon.App(module))
    defaults = {entry["id"]: entry["default"] for entry in label["parameters"]}
    assert read_parameters(declaration, {"parameters": defaults}) == declaration()
    assert read_parameters(declaration, {"parameters": {k: str(v) for k, v in defaults.items()}}) == declaration()
    assert set(defaults) - {"config"} == {each.name for each in declared(declaration)}
    for entry in label["parameters"]:
        if entry["type"] in ("int", "double"):
            for value in (entry["minimum"], entry["maximum"]):
                assert getattr(read_parameters(declaration, {"parameters": {entry["id"]: value}}), entry["id"]) == value
            for value in (entry["minimum"] - 1, entry["maximum"] + 1):
                with pytest.raises(ValueError, match=f"{entry['id']} = "):
                    read_parameters(declaration, {"parameters": {entry["id"]: value}})


def test_command_line_writes_to_standard_output():
    done = run("analyzeflow", "--name", "Flow", "--vendor", "We", "--information", "Maskiert Flüsse")
    assert done.returncode == 0, done.stderr
    label = json.loads(done.stdout)
    check_label(label)
    assert label["general"]["information"] == {"en": "Maskiert Flüsse"}
    # The way into the container's label: base64 and back.
    assert json.loads(base64.b64decode(base64.b64encode(done.stdout.encode()))) == label


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["nothere"], "there is no module 'nothere'"), (["analyzeflow", "--version", "v1"], "version 'v1' is not"),
     (["client"], "there is no module 'client'"), (["analyzeflow", "-o", "/nowhere/a.json"], "/nowhere/a.json")],
)  # fmt: skip
def test_wrong_command_lines_say_what_is_wrong(arguments, said, capsys):
    assert openrecon.main(arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err


def test_a_broken_module_is_named(tmp_path, capsys):
    (tmp_path / "broken.py").write_text("def process(:\n")
    assert openrecon.main(["broken", "-M", str(tmp_path)]) == 1
    assert "broken.py is no valid Python" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- the document
def document_blocks(language):
    text = (PROJECT / "doc" / "openrecon.md").read_text("utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [code for name, code in blocks if name == language]


def test_commands_of_the_document(tmp_path, monkeypatch):
    monkeypatch.chdir(PROJECT)
    commands = [line for block in document_blocks("") for line in block.splitlines() if "openrecon.py" in line]
    assert len(commands) == 3
    for command in commands:
        target = shlex.quote(str(tmp_path / "label.json"))
        python, script, *arguments = shlex.split(command.replace("label.json", target))
        assert (python, script) == ("python", "tools/openrecon.py")
        assert openrecon.main(arguments) == 0
        check_label(json.loads((tmp_path / "label.json").read_text("utf-8")))
        (tmp_path / "label.json").unlink()


def test_example_of_the_document(tmp_path):
    (example,) = document_blocks("python")
    (tmp_path / "documented.py").write_text(example, "utf-8")
    process = ModuleLoader([tmp_path]).load("documented")
    connection = FakeConnection()
    process(connection, {"parameters": {"windowSize": "5"}}, None)
    assert connection.texts == ["window 5, fast"]
    with pytest.raises(ValueError, match=re.escape("windowSize = 99: must be a whole number from 1 to 31 [px]")):
        process(connection, {"parameters": {"windowSize": 99}}, None)
    declaration = openrecon.find_parameters("documented", [tmp_path])
    check_label(openrecon.make_label("documented", declaration, openrecon.App("x")))


# ------------------------------------------------------------------------------------------------ single parameters
def entry_of(kind, default, description="What it is.", name="valueOfIt", **limits):
    cls = make_dataclass("Parameters", [(name, kind, parameter(default, description, **limits))], frozen=True)
    (declaration,) = declared(cls)
    return openrecon.parameter_entry(declaration)


def test_every_type_of_parameter():
    entries = [
        entry_of(bool, True),
        entry_of(str, "some text"),
        entry_of(str, "", choices=("", "roi")),
        entry_of(int, 3, minimum=1, maximum=31, unit="px"),
        entry_of(float, 0.3, minimum=-0.1, maximum=99.9, unit="ms"),
    ]
    for entry in entries:
        check_entry(entry)
        assert entry["label"] == {"en": "Value of it"}
        assert entry["information"] == {"en": "What it is."}
    assert [entry["type"] for entry in entries] == ["boolean", "string", "choice", "int", "double"]
    assert [entry.get("unit", {}).get("en") for entry in entries[3:]] == ["px", "ms"]
    assert entries[2]["values"][1] == {"id": "roi", "name": {"en": "roi"}}


def test_a_long_unit_goes_into_the_label():
    entry = entry_of(float, 100.0, minimum=0, maximum=500, unit="cm/s", name="venc")
    check_entry(entry)
    assert (entry["label"]["en"], "unit" in entry) == ("Venc [cm/s]", False)


@pytest.mark.parametrize(
    ("kind", "default", "options", "said"),
    [
        (int, 1, {"name": "window_size", "minimum": 0, "maximum": 2}, "letters and digits only, such as windowSize"),
        (int, 1, {"minimum": 0}, "needs its maximum"),
        (float, 1.0, {"maximum": 2}, "needs its minimum"),
        (int, 1, {"minimum": 0, "maximum": 2**31}, "beyond what a label holds"),
        (float, 0.0002, {"minimum": 0, "maximum": 1}, "default 0.0002 is no multiple of 0.1"),
        (Path, Path("x"), {}, "no type for"),
    ],
)
def test_what_a_label_cannot_hold_is_named(kind, default, options, said):
    with pytest.raises(openrecon.LabelError, match=re.escape(said)):
        entry_of(kind, default, **options)


def test_too_many_parameters():
    def cls(count):
        fields = [(f"switch{n}", bool, parameter(False, "A switch.")) for n in range(count)]
        return make_dataclass("Parameters", fields, frozen=True)

    check_label(openrecon.make_label("many", cls(13), openrecon.App("x")))
    with pytest.raises(openrecon.LabelError, match="14 parameters; a label holds 13"):
        openrecon.make_label("many", cls(14), openrecon.App("x"))


@pytest.mark.parametrize("name", ["ROISize", "imageSize2", "x", "sendOriginal"])
def test_words(name):
    expected = {"ROISize": "ROI size", "imageSize2": "Image size 2", "x": "X", "sendOriginal": "Send original"}
    assert entry_of(bool, False, name=name)["label"]["en"] == expected[name]
