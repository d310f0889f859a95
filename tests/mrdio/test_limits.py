"""One place for limits: its flags, its defaults, its table in the document."""

import argparse
import dataclasses
from pathlib import Path

import pytest

import main
from mrdio import limits
from mrdio.limits import MIB, Limits, add_limits, as_arguments, flag_of, read_limits

DOCUMENT = Path(limits.__file__).parents[1] / "doc" / "reliability.md"
FIELDS = [field.name for field in dataclasses.fields(Limits)]


def parse(*arguments):
    parser = argparse.ArgumentParser()
    add_limits(parser)
    return read_limits(parser.parse_args(arguments))


def test_defaults_of_the_command_line_are_those_of_the_class():
    assert parse() == Limits()
    assert read_limits(main.parse_arguments([])) == Limits()


def option(name, value):
    return ("--limit", f"{flag_of(name).removeprefix('--limit ')}={value}")


@pytest.mark.parametrize("name", FIELDS)
def test_every_limit_can_be_set(name):
    field = Limits.__dataclass_fields__[name]
    value = getattr(parse(*option(name, 7)), name)
    assert value == 7 * field.metadata["unit"]
    assert isinstance(value, field.type)


def test_several_limits_and_the_last_of_one_count():
    given = parse(*option("text", 7), *option("images", 3), *option("text", 8))
    assert given == Limits(text=8 * MIB, images=3)


@pytest.mark.parametrize("name", FIELDS)
def test_wrong_values_are_refused(name, capsys):
    for value in ("-1", "many", "nan", ""):
        with pytest.raises(SystemExit):
            parse(*option(name, value))
    assert flag_of(name) in capsys.readouterr().err


def test_a_misspelt_limit_is_explained(capsys):
    with pytest.raises(SystemExit):
        parse("--limit", "maxTexts=3")
    assert "there is no limit 'maxTexts'; did you mean maxText? Known are: maxMessage," in capsys.readouterr().err


def test_sizes_are_handed_to_other_processes_to_the_byte():
    given = Limits(data=1000, text=(3 << 20) + 1, header=77)
    assert parse(*as_arguments(given, *limits.MESSAGE_LIMITS)) == given


def test_the_document_has_the_table_that_the_command_line_prints(capsys):
    with pytest.raises(SystemExit) as ended:
        main.parse_arguments(["--limits"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert printed in DOCUMENT.read_text("utf-8")
    for name in FIELDS:
        assert f"| `{flag_of(name).removeprefix('--limit ')}` |" in printed


def test_the_table_shows_what_is_set(capsys):
    with pytest.raises(SystemExit):
        main.parse_arguments([*option("text", 3), "--limits"])
    assert "| `maxText` | 3 MiB |" in capsys.readouterr().out
