"""One place for limits: its flags, its defaults, its table in the document."""

import argparse
import dataclasses
import re
from pathlib import Path

import pytest

import limits
import main
from limits import MIB, Limits, add_limits, as_arguments, flag_of, read_limits

DOCUMENT = Path(limits.__file__).parent / "doc" / "reliability.md"
FIELDS = [field.name for field in dataclasses.fields(Limits)]


def parse(*arguments):
    parser = argparse.ArgumentParser()
    add_limits(parser)
    return read_limits(parser.parse_args(arguments))


def test_defaults_of_the_command_line_are_those_of_the_class():
    assert parse() == Limits()
    assert read_limits(main.parse_arguments([])) == Limits()


@pytest.mark.parametrize("name", FIELDS)
def test_every_limit_has_a_flag(name):
    field = Limits.__dataclass_fields__[name]
    value = getattr(parse(flag_of(name), "7"), name)
    assert value == 7 * field.metadata["unit"]
    assert isinstance(value, field.type)
    assert re.fullmatch(r"--[a-z]+([A-Z][a-z]+)*", flag_of(name))


@pytest.mark.parametrize("name", FIELDS)
def test_wrong_values_are_refused(name, capsys):
    for value in ("-1", "many"):
        with pytest.raises(SystemExit):
            parse(flag_of(name), value)
    assert flag_of(name) in capsys.readouterr().err


def test_sizes_are_handed_to_other_processes_to_the_byte():
    given = Limits(data=1000, text=(3 << 20) + 1, header=77)
    assert parse(*as_arguments(given, *limits.MESSAGE_LIMITS)) == given


def test_the_document_has_every_limit_with_its_default():
    rows = re.findall(r"^\| `(--\w+)` \| ([^|]*) \|", DOCUMENT.read_text("utf-8"), re.MULTILINE)
    table = dict(rows)
    for field in dataclasses.fields(Limits):
        value = field.default / field.metadata["unit"]
        unit = "MiB" if field.metadata["unit"] == MIB else "s" if field.type is float else ""
        assert table.pop(field.metadata["flag"]).strip() == f"{value:.12g} {unit}".strip(), field.name
    assert not table


def test_help_names_every_limit(capsys):
    with pytest.raises(SystemExit):
        main.parse_arguments(["--help"])
    said = capsys.readouterr().out
    for name in FIELDS:
        assert flag_of(name) in said
