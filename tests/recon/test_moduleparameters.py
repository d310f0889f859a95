import logging
from dataclasses import dataclass

import pytest

from recon.configuration import ConfigurationError, parameter
from recon.moduleparameters import read_parameters


@dataclass(frozen=True)
class Parameters:
    windowSize: int = parameter(3, "A size.", minimum=1, maximum=31)
    strength: float = parameter(0.5, "A number.", "s", minimum=0)
    isOn: bool = parameter(False, "A switch.")
    name: str = parameter("", "A text.")
    mode: str = parameter("fast", "A choice.", choices=("fast", "7"))


def read(**parameters):
    return read_parameters(Parameters, {"version": "1.0", "parameters": parameters})


@pytest.mark.parametrize("config", ["name", "", None, 5, {}, *({"parameters": sent} for sent in ({}, None, [1]))])
def test_without_json_all_is_default(config):
    assert read_parameters(Parameters, config) == Parameters()


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"windowSize": 5}, Parameters(windowSize=5)),
        ({"windowSize": " 5 "}, Parameters(windowSize=5)),
        ({"windowSize": 5.0}, Parameters(windowSize=5)),
        ({"windowSize": None}, Parameters()),
        ({"strength": "1e-3"}, Parameters(strength=0.001)),
        ({"strength": 2}, Parameters(strength=2.0)),
        ({"isOn": True}, Parameters(isOn=True)),
        ({"isOn": "True"}, Parameters(isOn=True)),
        ({"isOn": "false"}, Parameters(isOn=False)),
        ({"isOn": "1"}, Parameters(isOn=True)),
        ({"isOn": 1}, Parameters(isOn=True)),
        ({"name": " as it is "}, Parameters(name=" as it is ")),
        ({"name": 7}, Parameters(name="7")),
        ({"mode": 7}, Parameters(mode="7")),
    ],
)
def test_values_of_clients(sent, expected):
    assert read(**sent) == expected
    assert type(read(**sent).strength) is float


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        ({"windowSize": "five"}, "windowSize = 'five': must be a whole number from 1 to 31"),
        ({"windowSize": 5.5}, "windowSize = 5.5"),
        ({"windowSize": True}, "windowSize = True"),
        ({"windowSize": 99}, "windowSize = 99"),
        ({"windowSize": [3]}, "windowSize = [3]"),
        ({"strength": "nan"}, "strength = nan: must be a number of at least 0 [s]"),
        ({"strength": "-1"}, "strength = -1.0"),
        ({"isOn": "perhaps"}, "isOn = 'perhaps': must be true or false"),
        ({"isOn": 2}, "isOn = 2"),
        ({"name": {}}, "name = {}"),
        ({"mode": "slow"}, 'mode = \'slow\': must be one of "fast", "7"'),
        ({"windowSize": "9" * 10_000}, "windowSize = "),
    ],
)
def test_wrong_values_are_named(sent, said):
    with pytest.raises(ConfigurationError) as caught:
        read(**sent)
    assert str(caught.value).startswith("JSON parameters: ")
    assert said in str(caught.value)


def test_all_wrong_values_are_named_at_once():
    with pytest.raises(ConfigurationError, match=r"windowSize = 0.*; isOn = 'x'"):
        read(windowSize=0, isOn="x")


def test_what_the_scanner_adds_is_left_alone_and_a_misspelling_is_logged(caplog):
    with caplog.at_level(logging.WARNING):
        assert read(config="filter", customconfig="") == Parameters()
        assert caplog.records == []
        assert read(windowsize=5) == Parameters()
    assert "did you mean windowSize?" in caplog.text
