"""MRD header of version 2 (an object of the ``mrd`` package) to that of version 1 (`ismrmrd.xsd`), and back.

Both versions have the same elements. Their names differ in capitals and underscores only (``patientWeight_kg`` and
``patient_weight_kg``), so that one function converts both ways, led by the types of the target's fields.
"""

import base64
import datetime as dt
import re
import types
import typing
from enum import Enum
from typing import Any

from xsdata.models.datatype import XmlDate, XmlTime


def convert(value: Any, kind: Any, place: str = "header") -> Any:
    """Convert an element of a header of either version.

    Parameters
    ----------
    value : object
        The element: a record, a list, a member of an enumeration, a date, a time, a number or a text.
    kind : type
        Type of the result, `ismrmrd.xsd.ismrmrdHeader` or ``mrd.Header`` for a whole header.
    place : str
        Name of the element, for errors.

    Raises
    ------
    ValueError
        If an element that the other version requires is missing, or has a value that the other one does not know.
    """
    if value is None or getattr(value, "name", "") == "NOACCELERATION":  # which version 1 says by leaving it out
        return None
    if typing.get_origin(kind) is list:
        return [convert(each, typing.get_args(kind)[0], place) for each in value]
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        (kind,) = (each for each in typing.get_args(kind) if each is not types.NoneType)
    if issubclass(kind, Enum):
        return _member(value, kind, place)
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, XmlDate):
        return value.to_date()
    if isinstance(value, XmlTime):  # the other version has no time zones
        return kind.parse(re.match(r"[\d:.]*", str(value))[0])  # type: ignore[index]
    if isinstance(value, dt.date):
        return XmlDate.from_date(value)
    if kind is XmlTime:
        return XmlTime.from_string(str(value))
    if kind is bytes:
        return base64.b64decode(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if kind in (str, int, float):
        return kind(value)
    return _record(value, kind, place)


def comparable(name: str) -> str:
    """Name of an element or value, in the form in which both versions agree."""
    return name.replace("_", "").lower()


def _member(value: Any, kind: type[Enum], place: str) -> Enum:
    wanted = value.name if isinstance(value, Enum) else str(value)
    for member in kind:
        if comparable(member.name) == comparable(wanted):
            return member
    names = ", ".join(member.name for member in kind)
    raise ValueError(f"{place} is {wanted or value!r}, which the other version of MRD does not know: it has {names}")


def _record(value: Any, kind: type, place: str) -> Any:
    names = {comparable(name): name for name in typing.get_type_hints(type(value))}
    given = {}
    for name, hint in typing.get_type_hints(kind).items():
        given[name] = convert(getattr(value, names[comparable(name)]), hint, f"{place}.{name}")
        if given[name] is None and types.NoneType not in typing.get_args(hint):
            raise ValueError(f"{place}.{name} is missing, which the other version of MRD requires")
    return kind(**given)
