"""Rules of version 1.1.0 of the vendor's schema for the label of an app container (OpenRecon), in our own words.

The schema lies in public repositories; `tools/openrecon.py` makes labels. See doc/openrecon.md.
"""

import re
from collections.abc import Iterator
from typing import Any

LABEL = "com.siemens-healthineers.magneticresonance.openrecon.metadata:1.1.0"
"""Name of the label; its value is the JSON text in base64."""

TOP = {"general", "reconstruction", "parameters"}
GENERAL = {"name", "version", "vendor", "information", "id", "regulatory_information"}
REGULATORY = {
    "device_trade_name", "production_identifier", "manufacturer_address", "made_in", "manufacture_date",
    "material_number", "gtin", "udi", "safety_advices", "special_operating_instructions",
    "additional_relevant_information",
}  # fmt: skip
RECONSTRUCTION = {
    "transfer_protocol", "port", "emitter", "injector", "can_use_gpu", "min_required_memory",
    "min_count_required_cpu_cores", "content_qualification_type",
}  # fmt: skip
CHOICES = {
    "transfer_protocol": ({"protocol": "ISMRMRD", "version": "1.4.1"},),
    "emitter": ("raw", "image"),
    "injector": ("compleximage", "image"),
    "can_use_gpu": (True, False),
    "content_qualification_type": ("PRODUCT", "SERVICE", "RESEARCH"),
}
REQUIRED = {
    "boolean": {"default"}, "string": set(), "choice": {"default", "values"},
    "int": {"minimum", "maximum", "default"}, "double": {"minimum", "maximum", "default"},
}  # fmt: skip
ALLOWED = {"string": {"default", "isLargeText"}, "int": {"unit"}, "double": {"unit"}}
MOST_PARAMETERS = 14
MOST_UNIT = 3  # characters


def problems(label: Any) -> list[str]:
    """Say what in a label is against the schema; empty when nothing is.

    Parameters
    ----------
    label
        The label as JSON gives it.
    """
    try:
        return list(_problems(label))
    except (KeyError, TypeError, AttributeError, ValueError) as error:  # of another form than is looked for
        return [f"it is of another form ({type(error).__name__}: {error})"]


def _problems(label: Any) -> Iterator[str]:
    yield from _keys("the label", label, TOP)
    general, reconstruction, parameters = label["general"], label["reconstruction"], label["parameters"]
    yield from _keys("general", general, GENERAL)
    yield from _keys("regulatory_information", general["regulatory_information"], REGULATORY)
    for key, value in general["regulatory_information"].items():
        if not isinstance(value, str):
            yield f"regulatory_information.{key} is {value!r}, must be a text"
    if not re.fullmatch(r"\d+\.\d+\.\d+(-[\w.-]+)?(\+[\w.-]+)?", general["version"]):
        yield f"general.version is {general['version']!r}, must be of the form 1.2.3"
    for key in ("name", "information"):
        if not isinstance(general[key]["en"], str):
            yield f"general.{key} needs an English text, en"
    yield from _keys("reconstruction", reconstruction, RECONSTRUCTION, others=True)
    for key, choices in CHOICES.items():
        if not any(reconstruction.get(key) == choice for choice in choices):
            words = " or ".join(map(repr, choices))
            yield f"reconstruction.{key} is {reconstruction.get(key)!r}, must be {words}"
    if not 1 <= len(parameters) <= MOST_PARAMETERS:
        yield f"there are {len(parameters)} parameters, must be 1 to {MOST_PARAMETERS}"
    names = [entry["id"] for entry in parameters]
    if twice := {name for name in names if names.count(name) > 1}:
        yield f"parameters have the same id: {', '.join(sorted(twice))}"
    for entry in parameters:
        yield from _entry_problems(entry)


def _keys(where: str, found: Any, needed: set[str], others: bool = False) -> Iterator[str]:
    if missing := needed - set(found):
        yield f"{where} lacks {', '.join(sorted(missing))}"
    if not others and (unknown := set(found) - needed):
        yield f"{where} has {', '.join(sorted(unknown))}, which the schema does not know"


def _entry_problems(entry: Any) -> Iterator[str]:
    name, kind = entry["id"], entry["type"]
    where = f"parameter {name}"
    if kind not in REQUIRED:
        yield f"{where}: type is {kind!r}, must be one of {', '.join(REQUIRED)}"
        return
    needed = {"id", "type", "label"} | REQUIRED[kind]
    yield from _keys(where, set(entry) - {"information"} - ALLOWED.get(kind, set()), needed)
    if not re.fullmatch("[A-Za-z0-9]+", name):
        yield f"{where}: the id takes letters and digits only"
    for key in ("label", "information"):
        if key in entry and not entry[key]["en"]:
            yield f"{where}: {key} needs an English text, en"
    if kind in ("int", "double"):
        yield from _number_problems(where, entry)
    elif kind == "choice":
        if entry["default"] not in [value["id"] for value in entry["values"]]:
            yield f"{where}: the default {entry['default']!r} is none of its values"
        if not all(set(value) == {"id", "name"} and value["name"]["en"] for value in entry["values"]):
            yield f"{where}: each value needs an id and a name with an English text"
    elif not isinstance(entry.get("default", ""), bool if kind == "boolean" else str):
        yield f"{where}: the default {entry['default']!r} is no {kind}"


def _number_problems(where: str, entry: Any) -> Iterator[str]:
    low, high, default = (entry[key] for key in ("minimum", "maximum", "default"))
    if not low <= default <= high:
        yield f"{where}: the default {default} is not from {low} to {high}"
    for key, value in (("minimum", low), ("maximum", high), ("default", default)):
        if not isinstance(value, int if entry["type"] == "int" else int | float) or isinstance(value, bool):
            yield f"{where}: {key} {value!r} is no {entry['type']}"
        elif abs(value) >= 2**31 or abs(value * 10 - round(value * 10)) > 1e-9:
            yield f"{where}: {key} {value} is beyond 32 bits, or no multiple of 0.1"
    if "unit" in entry and not 1 <= len(entry["unit"]["en"]) <= MOST_UNIT:
        yield f"{where}: a unit has 1 to {MOST_UNIT} characters"
