"""Makes the label of a scanner's app container (OpenRecon): ``python tools/openrecon.py analyzeflow --name Flow``.

The label is a JSON text. It tells the scanner how to reach the server, what it needs, and which parameters the operator
sees. The parameters come from the module's dataclass ``Parameters``, the same declaration that checks what the scanner
sends when the module runs (`moduleparameters.read_parameters`). doc/openrecon.md tells how it gets into a container.

The rules are those of version 1.1.0 of the vendor's JSON schema, as it lies in public repositories.
"""

import argparse
import json
import logging
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT_FOLDER = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT_FOLDER))

from recon.configuration import Declaration, declared
from serving.module_loader import ModuleError, ModuleLoader

logger = logging.getLogger(__name__)

MAX_PARAMETERS = 14
MAX_UNIT = 3  # characters
INT32 = -(2**31), 2**31 - 1
DECIMALS = 1  # numbers are multiples of 0.1
PROTOCOL = {"protocol": "ISMRMRD", "version": "1.4.1"}
_ID = re.compile(r"[A-Za-z0-9]+")
_VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?")


class LabelError(ValueError):
    """A declaration or description that the label cannot hold; the message says what it can."""


@dataclass(frozen=True)
class App:
    """Facts of the app for the label, besides its parameters.

    Attributes
    ----------
    name, version, vendor, information : str
        What the operator reads; the version is of the form 1.2.3.
    emitter : str
        What the scanner sends: "image" or "raw".
    injector : str
        What it takes back: "image" or "compleximage".
    port : int
        Where the server listens in its container.
    memory, gpu_memory : int
        What it needs at least [MB].
    cores, gpus : int
        What it needs at least.
    """

    name: str
    version: str = "1.0.0"
    vendor: str = "research"
    information: str = ""
    emitter: str = "image"
    injector: str = "image"
    port: int = 9002
    memory: int = 4096
    gpu_memory: int = 0
    cores: int = 2
    gpus: int = 0


def make_label(module: str, parameters: type | None, app: App) -> dict[str, Any]:
    """Make the label of an app that runs one module.

    Parameters
    ----------
    module
        Name of the module.
    parameters
        Its dataclass with the declarations, None when it takes no parameters.
    app
        What the label says besides.

    Returns
    -------
    The label, ready to be written as JSON.

    Raises
    ------
    LabelError
        When a declaration has no place in a label, or there are too many, or the version is none.
    """
    if not _VERSION.fullmatch(app.version):
        raise LabelError(f"version '{app.version}' is not of the form 1.2.3")
    if not app.name.strip():
        raise LabelError("the app needs a name")
    entries = [_config_entry(module), *map(parameter_entry, declared(parameters) if parameters else ())]
    if len(entries) > MAX_PARAMETERS:
        raise LabelError(
            f"{module} declares {len(entries) - 1} parameters; a label holds {MAX_PARAMETERS - 1} besides 'config'"
        )
    return {"general": _general(app), "reconstruction": _reconstruction(app), "parameters": entries}


def parameter_entry(declaration: Declaration) -> dict[str, Any]:
    """Describe one parameter as the label does.

    Raises
    ------
    LabelError
        When its name has other characters than letters and digits, its type has no counterpart, or it is a number
        without a smallest and a largest value, or with more decimals than one.
    """
    name, kind, limits = declaration.name, declaration.kind, declaration.parameter
    if declaration.table:
        raise LabelError(f"parameter {declaration.key}: a label has no tables")
    if not _ID.fullmatch(name):
        raise LabelError(f"parameter {name}: a label takes letters and digits only, such as {_camel_case(name)}")
    unit = f" [{limits.unit}]" if limits.unit else ""
    entry: dict[str, Any] = {
        "id": name,
        "label": {"en": _words(name) + (unit if len(limits.unit or "") > MAX_UNIT else "")},
        "information": {"en": limits.description},
    }
    if kind is bool:
        return entry | {"type": "boolean", "default": declaration.default}
    if kind is str and limits.choices:
        choices = [{"id": choice, "name": {"en": choice or "none"}} for choice in limits.choices]
        return entry | {"type": "choice", "default": declaration.default, "values": choices}
    if kind is str:
        return entry | {"type": "string", "default": declaration.default}
    if kind not in (int, float):
        raise LabelError(f"parameter {name}: a label has no type for {kind}")
    if limits.unit and len(limits.unit) <= MAX_UNIT:
        entry["unit"] = {"en": limits.unit}
    numbers = {"minimum": limits.minimum, "maximum": limits.maximum, "default": declaration.default}
    for which, value in numbers.items():
        if value is None:
            raise LabelError(f"parameter {name}: a label needs its {which}; declare it")
        if not math.isfinite(value) or (kind is int and not INT32[0] <= value <= INT32[1]):
            raise LabelError(f"parameter {name}: {which} {value} is beyond what a label holds")
        if kind is float and not math.isclose(value, round(value, DECIMALS), rel_tol=1e-12):
            raise LabelError(f"parameter {name}: {which} {value:g} is no multiple of 0.1; choose another unit")
    return entry | {"type": "int" if kind is int else "double"} | {key: kind(value) for key, value in numbers.items()}


def _config_entry(module: str) -> dict[str, Any]:
    """Describe the parameter that names the module; the server reads it, whatever config the scanner sends."""
    return {
        "id": "config",
        "label": {"en": "Module"},
        "information": {"en": "Module that the server runs."},
        "type": "choice",
        "default": module,
        "values": [{"id": module, "name": {"en": module}}],
    }


def _general(app: App) -> dict[str, Any]:
    # Nothing here is a medical product. What a research app cannot say is empty; the keys have to be there.
    regulatory = dict.fromkeys(
        ("device_trade_name", "production_identifier", "manufacturer_address", "made_in", "manufacture_date",
         "material_number", "gtin", "udi", "safety_advices", "special_operating_instructions",
         "additional_relevant_information"), "",
    )  # fmt: skip
    regulatory |= {"device_trade_name": app.name, "production_identifier": app.version}
    return {
        "name": {"en": app.name},
        "version": app.version,
        "vendor": app.vendor,
        "information": {"en": app.information or app.name},
        "id": "".join(_ID.findall(app.name)) or "app",
        "regulatory_information": regulatory | {"safety_advices": "For research only, not for diagnosis."},
    }


def _reconstruction(app: App) -> dict[str, Any]:
    return {
        "transfer_protocol": PROTOCOL,
        "port": app.port,
        "emitter": app.emitter,
        "injector": app.injector,
        "can_process_adjustment_data": False,
        "can_use_gpu": app.gpus > 0,
        "min_count_required_gpus": app.gpus,
        "min_required_gpu_memory": app.gpu_memory,
        "min_required_memory": app.memory,
        "min_count_required_cpu_cores": app.cores,
        "content_qualification_type": "RESEARCH",
    }


def _words(name: str) -> str:
    """Turn windowSize into Window size."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
    text = " ".join(word if word.isupper() and len(word) > 1 else word.lower() for word in words)
    return text[:1].upper() + text[1:]


def _camel_case(name: str) -> str:
    first, *others = [word for word in re.split(r"[^A-Za-z0-9]+", name) if word] or ["name"]
    return first + "".join(word[:1].upper() + word[1:] for word in others)


def find_parameters(module: str, folders: Sequence[Path]) -> type | None:
    """Return the dataclass ``Parameters`` of a module, None when it has none.

    Raises
    ------
    LabelError
        When there is no such module, or it cannot be loaded.
    """
    sys.path.extend(str(folder) for folder in folders if str(folder) not in sys.path)
    try:
        process = ModuleLoader(folders).load(module)
    except ModuleError as error:
        raise LabelError(str(error)) from error
    if process is None:
        raise LabelError(f"there is no module '{module}' in {', '.join(map(str, folders))}")
    return getattr(sys.modules[process.__module__], "Parameters", None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 1 if there is no label."""
    parser = argparse.ArgumentParser(
        description="Makes the label of a scanner's app container (OpenRecon) that runs one module.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("module", help="module that the app runs")
    add("--name", help="name that the operator reads (default: the module's)")
    add("--version", default=App.version, help="version of the app")
    add("--vendor", default=App.vendor, help="who made it")
    add("--information", default="", help="a sentence about it")
    add("--input", choices=("image", "raw"), default=App.emitter, help="what the scanner sends")
    add("--output", choices=("image", "compleximage"), default=App.injector, help="what it takes back")
    add("--port", type=int, default=App.port, help="where the server listens in its container")
    add("--memory", type=int, default=App.memory, metavar="MB", help="memory that it needs at least")
    add("--cores", type=int, default=App.cores, help="CPU cores that it needs at least")
    add("--gpus", type=int, default=App.gpus, help="GPUs that it needs at least")
    add("--gpuMemory", type=int, default=App.gpu_memory, metavar="MB", help="GPU memory that it needs at least")
    add("-M", "--moduleFolder", type=Path, action="append", default=[], metavar="FOLDER",
        help="further folder with modules; may be given several times")  # fmt: skip
    add("-o", "--outfile", type=Path, help="where to write the label (default: standard output)")
    args = parser.parse_args(arguments)
    app = App(
        name=args.name or args.module, version=args.version, vendor=args.vendor, information=args.information,
        emitter=args.input, injector=args.output, port=args.port, memory=args.memory, gpu_memory=args.gpuMemory,
        cores=args.cores, gpus=args.gpus,
    )  # fmt: skip
    try:
        parameters = find_parameters(args.module, [PROJECT_FOLDER, *(path.resolve() for path in args.moduleFolder)])
        text = json.dumps(make_label(args.module, parameters, app), indent=4) + "\n"
        if args.outfile is None:
            sys.stdout.write(text)
        else:
            args.outfile.write_text(text, "utf-8")
    except (LabelError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
