"""Parameters that a client sends along as JSON, checked against a module's one declaration of them.

A module that takes parameters declares a frozen dataclass named ``Parameters`` whose fields are made by
`configuration.parameter`. From this declaration come the checks here and the label of the scanner's app container
(``openrecon.py``), so that the two cannot disagree.
"""

import logging
from collections.abc import Mapping
from typing import Any

from mrdio.jsonparameters import ALLOWED, convert
from recon.configuration import Config, declared, from_mapping, unknown_key

logger = logging.getLogger(__name__)

SOURCE = "JSON parameters"
NOT_FOR_MODULES = frozenset({"config", "customconfig"})  # the server reads these: they name the module


def read_parameters(cls: type[Config], config: Any) -> Config:
    """Make a module's parameters of what its client sent.

    Scanners send numbers and switches as text as well, so ``"5"`` and ``"True"`` are taken for what they say. Keys that
    are not declared are logged and left alone, for a scanner adds its own.

    Parameters
    ----------
    cls
        The module's ``Parameters``.
    config
        What `process` received: the JSON object with ``parameters``, or the config name when there was no JSON.

    Returns
    -------
    An instance of `cls`; what the client did not send has its default.

    Raises
    ------
    configuration.ConfigurationError
        Names every value that has the wrong type or is out of range, with what is allowed.
    """
    sent = config.get("parameters") if isinstance(config, Mapping) else None
    if not isinstance(sent, Mapping):
        return cls()
    known = list(declared(cls))
    kinds = {declaration.name: declaration.kind for declaration in known}
    for name in sent:
        if name not in kinds and name not in NOT_FOR_MODULES:
            logger.warning("%s: %.300s; it is left out", SOURCE, unknown_key("", name, known))
    values = {name: _in_type(sent[name], kind) for name, kind in kinds.items() if sent.get(name) is not None}
    return from_mapping(cls, values, SOURCE)


def _in_type(value: Any, kind: type) -> Any:
    """Convert a value to its declared type; what it does not say is left for the check to refuse, which names it."""
    try:
        return convert(value, kind) if kind in ALLOWED else value
    except ValueError:
        return value
