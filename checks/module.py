"""Runs a module in the real server on a simulated scanner, and checks what it sends and how it behaves."""

import re
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from checks import answers, pace, scans
from checks.finding import Finding, fault, ok, warning
from checks.scanner import Answer, Scanner
from checks.scans import Scan
from recon import memory
from recon.configuration import PROJECT_FOLDER
from serving.module_loader import ModuleError, ModuleLoader, known_names

LONGEST_PACED = 5.0  # length of a scan that is sent at its own pace [s]
SAME = 0.05  # relative difference that images of the same data may have: live ones depend on the time
UNPLANNED = {
    "ZeroDivisionError", "IndexError", "KeyError", "AttributeError", "TypeError", "NameError", "UnboundLocalError",
    "AssertionError", "StopIteration", "RecursionError", "MemoryError", "RuntimeWarning", "FloatingPointError",
}  # fmt: skip
_FRAME = re.compile(r'^  File "(.*?)", line (\d+)', re.MULTILINE)


def examine(scanner: Scanner, module: str, kinds: Sequence[str] = (), paced: bool = True) -> Iterator[Finding]:
    """Yield all findings about a module.

    Parameters
    ----------
    scanner
        A scanner whose server finds the module.
    module
        Its name.
    kinds
        Kinds of input (`scans.KINDS`) that it is for; by default all those for which it sends images.
    paced
        Whether one of the scans is sent at its own pace, to see when images come.
    """
    taken: dict[str, tuple[Scan, Answer]] = {}
    refused: list[tuple[Scan, Answer]] = []
    for kind in kinds or scans.KINDS:
        if kind == "physiology" and taken and not kinds:
            continue
        scan = scans.make(kind)
        answer = scanner.send(module, scan)
        if not answer.closed:
            yield _does_not_end(scan, answer, scanner.patience)
            return
        if answer.images:
            taken[kind] = (scan, answer)
        else:
            refused.append((scan, answer))
    if not taken or (kinds and refused):
        yield from _nothing_comes(refused)
    for scan, answer in refused:
        yield from _behaviour(scan, answer, planned=True)
    for kind, (scan, answer) in taken.items():
        yield from _examine_kind(scanner, module, kind, scan, answer, paced)


def examine_scan(scanner: Scanner, module: str, scan: Scan) -> Iterator[Finding]:
    """Yield the findings about a module with one scan alone, such as a file's."""
    scanner.send(module, scans.empty(scan))  # compiles what the first scan would wait for
    with pace.Memory() as used:
        answer = scanner.send(module, scan)
    if not answer.closed:
        yield _does_not_end(scan, answer, scanner.patience)
        return
    if answer.images:
        yield ok("input", _summary(scan, answer))
        yield from _behaviour(scan, answer, planned=False)
        if scan.tr:
            behind = pace.duration_of(scan) < min(answer.seconds, LONGEST_PACED)
            at_pace = scanner.send(module, scan, realtime=True) if behind else None
            yield pace.finding(scan, answer, used.most, memory.free(), at_pace)
        found = list(answers.check(answer.images, set(), scan))
        if any(each.level and each.subject in ("geometry", "field of view") for each in found):
            # It may be a report, which lies nowhere.
            reports = _reports(answer, scanner.send(module, scans.flipped(scan)))
            found = list(answers.check(answer.images, reports, scan))
        yield from found
    else:
        yield from _nothing_comes([(scan, answer)])


def _examine_kind(
    scanner: Scanner, module: str, kind: str, scan: Scan, answer: Answer, paced: bool
) -> Iterator[Finding]:
    yield ok("input", _summary(scan, answer))
    yield from _behaviour(scan, answer, planned=False)
    other_scan = scans.make(kind, mirrored=True)
    other = scanner.send(module, other_scan)
    if not other.closed:
        yield _does_not_end(other_scan, other, scanner.patience)
        return
    reports = _reports(answer, other)
    found = list(answers.check(answer.images, reports, scan))
    yield from found
    again = scanner.send(module, scan)
    if not again.closed:
        yield _does_not_end(scan, again, scanner.patience)
        return
    if paced and 0 < pace.duration_of(scan) <= LONGEST_PACED:
        yield pace.timing(scan, scanner.send(module, scan, realtime=True))
    yield _state(answer, again, other, [finding.text for finding in found if finding.level], reports, other_scan)
    for wrong in (scans.empty(scan), scans.spoilt(scan)):
        result = scanner.send(module, wrong)
        if not result.closed:
            yield _does_not_end(wrong, result, scanner.patience)
            return
        yield from _bad_data(wrong, result)


def _summary(scan: Scan, answer: Answer) -> str:
    series = len(answers.by_series(answer.images))
    return f"{scan.name}: {len(answer.images)} images in {series} series; the session ends"


def _does_not_end(scan: Scan, answer: Answer, patience: float) -> Finding:
    return fault(
        "ending",
        f"{scan.name}: the session has not ended {patience:g} s after the last message ({len(answer.images)} images "
        f"came; {answer.broken or 'no CLOSE'}): the scanner would wait. A loop over the connection ends by itself "
        "after CLOSE; for a slow module, give --patience",
    )


def _nothing_comes(refused: Sequence[tuple[Scan, Answer]]) -> Iterator[Finding]:
    inputs: dict[str, list[str]] = {}
    for scan, answer in refused:
        texts = answer.errors or [text for text in answer.texts if not text.startswith(("INFO", "DEBUG"))]
        said = texts[-1].splitlines()[0][:400] if texts else answer.reason
        inputs.setdefault(said, []).append(scan.name)
    for said, names in inputs.items():
        if said:
            yield fault("input", f"{', '.join(names)}: no image; what the module says: {said}")
        else:
            yield fault(
                "input", f"{', '.join(names)}: no image, and not a word to the client why (are errors swallowed?)"
            )


def _behaviour(scan: Scan, answer: Answer, planned: bool) -> Iterator[Finding]:
    """Yield findings about the session itself; `planned`: an error may be the right answer."""
    if answer.printed.strip():
        line = answer.printed.strip().splitlines()[0]
        yield warning(
            "output", f"{scan.name}: the module prints ({line[:80]!r}): nobody reads that at a scanner, and it takes "
            "time; use logging, or connection.info for the client",
        )  # fmt: skip
    if answer.changed:
        yield fault(
            "side effects", f"{scan.name}: the module changes {', '.join(answer.changed)} for the whole server, and so "
            "for other scans",
        )  # fmt: skip
    if not planned and (answer.errors or answer.reason):
        said = answer.errors[0].splitlines()[0] if answer.errors else answer.reason
        yield fault("errors", f"{scan.name}: {said[:400]}")


def _reports(answer: Answer, other: Answer) -> set[int]:
    """Series whose pixels are the same for an object and its mirror image."""
    first, second = answers.by_series(answer.images), answers.by_series(other.images)
    return {
        number
        for number, members in first.items()
        if number in second and _same(members, second[number]) and all(np.ptp(np.abs(each.data)) for each in members)
    }


def _same(some: list, others: list) -> bool:
    """True if two lists of images have the same pixels, but for rounding."""
    if len(some) != len(others):
        return False
    for one, other in zip(some, others, strict=True):
        if one.data.shape != other.data.shape:
            return False
        a, b = (each.data.astype(np.complex128) for each in (one, other))
        if np.linalg.norm(a - b) > SAME * np.linalg.norm(a):
            return False
    return True


def _state(
    answer: Answer, again: Answer, other: Answer, known: list[str], reports: set[int], other_scan: Scan
) -> Finding:
    """Compare the same scan before and after another one, and that other one with what it has to be."""
    advice = "something is kept from scan to scan: a global, a default argument that is a list, a cache without a key"
    if len(again.images) != len(answer.images):
        return fault("state", f"the same scan gave {len(answer.images)} images, and {len(again.images)} after another "
                     f"scan: {advice}")  # fmt: skip
    if not _same(answer.images, again.images):
        return fault("state", f"the same scan gave other pixels after another scan: {advice}")
    for one, two in zip(answer.images, again.images, strict=True):
        ours, theirs = (
            (each.image_index, each.image_series_index, each.acquisition_time_stamp, tuple(each.position), each.slice)
            for each in (one, two)
        )
        if ours != theirs:
            return fault(
                "state", f"the same scan gave other numbers in the images' headers after another scan: {advice}"
            )
    problems = [
        each for each in answers.check(other.images, reports, other_scan) if each.level and each.text not in known
    ]
    if len(other.images) != len(answer.images) or (problems and not known):
        what = problems[0].text if problems else f"{len(other.images)} images instead of {len(answer.images)}"
        return fault("state", f"the second scan is wrong although the first was right ({what}): {advice}")
    return ok("state", "the same scan gives the same images before and after another one")


def _bad_data(scan: Scan, answer: Answer) -> Iterator[Finding]:
    error = "\n".join(answer.errors)
    if unplanned := _unplanned(error):
        yield fault(
            "bad data", f"{scan.name}: {unplanned}: check for this case, and say what is wrong and would be right"
        )
    elif answer.images or answer.texts:
        said = "" if not answer.texts else f"; the client reads: {_last_word(answer)}"
        yield ok("bad data", f"{scan.name}: {len(answer.images)} images{said}")
    else:
        reason = f" ({answer.reason})" if answer.reason else ""
        yield fault("bad data", f"{scan.name}: no image and not a word to the client{reason}: say why with "
                    "connection.warn, or raise an error")  # fmt: skip


def _last_word(answer: Answer) -> str:
    texts = answer.errors or [text for text in answer.texts if text.startswith("WARNING")] or answer.texts
    return texts[0].splitlines()[0][:160]


def _unplanned(text: str) -> str:
    """Describe an error that nobody has foreseen: of a type that mistakes have, or raised inside a library."""
    lines = text.splitlines()
    if "Traceback" not in text:
        return ""
    name = lines[0].partition(" failed: ")[2].partition(":")[0]
    frames = _FRAME.findall(text)
    file, line = frames[-1] if frames else ("", "0")
    own = [(path, number) for path, number in frames if "site-packages" not in path and "/lib/python" not in path]
    place = f" at {Path(own[-1][0]).name}, line {own[-1][1]}" if own else ""
    if name in UNPLANNED and not _raised(file, int(line)):
        return f"the module ends with {name}{place}"
    if "site-packages" in file or "/lib/python" in file:
        return f"the module ends with an error inside a library, {lines[0].partition(' failed: ')[2][:120]}{place}"
    return ""


def _raised(file: str, line: int) -> bool:
    """True if an error comes from a raise statement of a readable file: somebody has foreseen it."""
    try:
        source = Path(file).read_text("utf-8").splitlines()
    except OSError:
        return False
    # A traceback names the first line of a statement.
    return 0 < line <= len(source) and source[line - 1].lstrip().startswith("raise ")


def find(module: str, folders: Sequence[Path]) -> Finding:
    """Load a module, as the server does; returns whether it can be."""
    loader = ModuleLoader(folders)
    try:
        process = loader.load(module)
    except ModuleError as error:
        return fault("module", str(error))
    except Exception as error:  # noqa: BLE001 -- the module's own code
        return fault("module", "".join(traceback.format_exception_only(error)).strip())
    path = loader.find(module)
    if process is None or path is None:
        names = ", ".join(map(str, folders))
        wanted = f"there is no module '{module}' (a file {module}.py that defines process)"
        return fault("module", f"{wanted} in {names}; {known_names(module, loader.names())}")
    shown = path.relative_to(PROJECT_FOLDER) if path.is_relative_to(PROJECT_FOLDER) else path
    return ok("module", f"{shown} can be loaded")
