"""Figures of a soak run: the samples, what they say of growth, a summary, and a plot."""

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .soakclient import Report

MIB = 1 << 20
KEPT_SAMPLES = 400  # in the JSON
COLOURS = {"first": "#1f6feb", "second": "#d1570b", "third": "#2e8540", "bad": "#c62828", "quiet": "#7a7a7a"}

# How much larger the memory may be in the last quarter of a run than in the second one; in a short run the second one
# still belongs to the time in which each thread takes the memory that it will use again and again.
MAY_GROW_SHARE, MAY_GROW = 0.10, 32 * MIB
JUDGED_FROM = 150.0  # [s]

AT_REST = ("threads", "handles", "children", "recordings", "temporary")  # are to be back when the clients have gone


@dataclass(frozen=True)
class Sample:
    """The server at one moment.

    Attributes
    ----------
    time : float
        Since the clients began [s].
    memory, tree : int
        Physical memory of the server's own process, and of all its processes together [bytes].
    threads, handles, children : int
        Threads and open file descriptors of all its processes; how many processes it has started.
    recordings, temporary : int
        Files in the folder of recordings; what lies in its temporary folder.
    """

    time: float
    memory: int
    tree: int
    threads: int
    handles: int
    children: int
    recordings: int
    temporary: int


@dataclass
class Run:
    """Everything that a soak run gathers.

    Attributes
    ----------
    command : str
        What was run.
    seconds : float
        How long clients came [s].
    before, after : Sample
        The server at rest.
    samples : list of Sample
        In between.
    reports : list of (float, Report)
        When each session ended [s], and how.
    killed : dict
        By scan, sessions whose client was killed.
    kills : int
        Killed processes of clients.
    recordings, saved : int
        Recordings that were opened, and readouts and images in them.
    problems : list of str
        What must not have been.
    """

    command: str
    seconds: float
    before: Sample
    after: Sample
    samples: list[Sample]
    reports: list[tuple[float, Report]]
    killed: dict[str, int]
    kills: int
    recordings: int
    saved: int
    problems: list[str] = field(default_factory=list)


def growth(samples: Sequence[Sample], name: str) -> tuple[float, float]:
    """Median of a figure in the second quarter of a run, when the server has warmed up, and in the last."""
    values = [getattr(sample, name) for sample in samples]
    quarter = max(1, len(values) // 4)
    return float(np.median(values[quarter : 2 * quarter] or values)), float(np.median(values[-quarter:]))


def judge(run: Run) -> list[str]:
    """Problems of a run: sessions that ended wrongly, and anything that has grown."""
    wrong = Counter(f"{report.scan}, {report.fault}: {report.problem}" for _, report in run.reports if report.problem)
    problems = [f"{count} x {text}" for text, count in wrong.items()]
    early, late = growth(run.samples, "memory")
    if run.seconds >= JUDGED_FROM and late > (1 + MAY_GROW_SHARE) * early + MAY_GROW:
        problems.append(f"the server's memory has grown from {early / MIB:.0f} to {late / MIB:.0f} MiB")
    helpers, helpers_after = (each.tree - each.memory for each in (run.before, run.after))
    if helpers_after > (1 + MAY_GROW_SHARE) * helpers + MAY_GROW:
        problems.append(f"its helpers' memory was {helpers / MIB:.0f} MiB before, and {helpers_after / MIB:.0f} after")
    for name in AT_REST:
        before, after = getattr(run.before, name), getattr(run.after, name)
        if after > before:
            problems.append(f"at rest there were {before} {name} before, and {after} after")
    return problems


def percentiles(values: Sequence[float], factor: float = 1.0) -> str:
    """Median, 95th and 99th percentile for the table."""
    if not values:
        return "- | - | -"
    return " | ".join(f"{factor * value:.3g}" for value in np.percentile(values, [50, 95, 99]))


def summary(run: Run) -> str:
    """Tables of the run in Markdown."""
    reports = [report for _, report in run.reports]
    early, late = growth(run.samples, "memory")
    peak = {each.name: max(getattr(sample, each.name) for sample in run.samples) for each in dataclasses.fields(Sample)}
    begun = len(reports) + sum(run.killed.values())
    faults = Counter(report.fault for report in reports if not report.problem)
    megabytes = sum(report.sent for report in reports) / 1e6 / run.seconds
    taken = sum(report.readouts for report in reports) / run.seconds
    whole, slow = faults["none"] + faults["slow reader"], faults["slow reader"]
    rows = {
        "sessions": f"{begun} in {run.seconds / 60:.1f} min, {begun / run.seconds:.1f} per second",
        "went to their end, every image with the right pixels": f"{whole}, of them {slow} with a slow reader",
        "broken off by the client": f"{faults['cut']} by the end of the stream, {faults['reset']} by a reset",
        "lost with their client": f"{sum(run.killed.values())}, in {run.kills} processes that were killed",
        "**ended in any other way**": f"**{sum(bool(report.problem) for report in reports)}**",
        "taken in": f"{taken:.0f} readouts/s, {megabytes:.1f} MB/s",
        "recordings that were opened": f"{run.recordings}, with {run.saved} readouts and images",
        "memory of the server's own process": f"{early / MIB:.0f} MiB in the second quarter of the run, "
        f"{late / MIB:.0f} MiB in the last",
        "memory with all its processes": f"at most {peak['tree'] / MIB:.0f} MiB",
    }
    for name in AT_REST:
        before, after = getattr(run.before, name), getattr(run.after, name)
        rows[f"{name} at rest"] = f"{before} before, {after} after ({peak[name]} at most)"
    lines = ["| soak | figure |", "| --- | --- |", *(f"| {name} | {figure} |" for name, figure in rows.items()), ""]
    lines += ["| session | ended | p50 | p95 | p99 [s] |", "| --- | --- | --- | --- | --- |"]
    for scan in sorted({report.scan for report in reports}):
        times = [report.seconds for report in reports if (report.scan, report.fault) == (scan, "none")]
        lines.append(f"| {scan} | {len(times)} | {percentiles(times)} |")
    latencies = [latency for report in reports for latency in report.latencies]
    lines += ["", "| last readout of a frame to its image | images | p50 | p95 | p99 [ms] |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    lines += [f"| simplenufft1arm | {len(latencies)} | {percentiles(latencies, 1e3)} |"]
    lines += ["", *(f"PROBLEM: {problem}" for problem in run.problems), "" if run.problems else "no problems"]
    return "\n".join(lines)


def save(run: Run, path: Path) -> None:
    """Write all figures as JSON; the sessions as counts, the samples thinned out."""
    step = max(1, len(run.samples) // KEPT_SAMPLES)
    counts = Counter((report.scan, report.fault, report.problem or "as it has to be") for _, report in run.reports)
    content: dict[str, Any] = {
        "command": run.command,
        "seconds": round(run.seconds, 1),
        "sessions": [[*key, count] for key, count in sorted(counts.items())],
        "killed": run.killed,
        "recordings": run.recordings,
        "problems": run.problems,
        "before": dataclasses.asdict(run.before),
        "after": dataclasses.asdict(run.after),
        "columns": [each.name for each in dataclasses.fields(Sample)],
        "samples": [[round(value, 1) for value in dataclasses.astuple(sample)] for sample in run.samples[::step]],
    }
    rows = ",\n".join(json.dumps(row) for row in content.pop("samples"))
    head = json.dumps(content, indent=1)
    path.write_text(f'{head[:-2]},\n "samples": [\n{rows}\n]}}\n', "utf-8")


# ---- the plot ------------------------------------------------------------------------------------------------------


def _binned(pairs: Sequence[tuple[float, float]], edges: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Values by the bin that their time is in."""
    times, values = np.array(pairs, float).reshape(-1, 2).T
    bins = np.digitize(times, edges) - 1
    return [values[bins == number] for number in range(len(edges) - 1)]


def draw(run: Run, path: Path) -> None:
    """Draw the run over time."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    edges = np.linspace(0, run.seconds, max(8, min(90, int(run.seconds / 5))) + 1)
    with plt.rc_context({"font.size": 10, "axes.spines.top": False, "axes.grid": True, "grid.alpha": 0.3}):
        figure, axes = plt.subplots(5, 1, figsize=(8.6, 12), sharex=True, layout="constrained")
        _draw_volume(axes[0], run, edges)
        _draw_latency(axes[1], run, edges)
        _draw_samples(axes[2], axes[3], run)
        _draw_outcomes(axes[4], run)
        for axis in axes[1:]:
            axis.legend(fontsize=8.5, ncols=6, loc="lower left", bbox_to_anchor=(-0.01, 0.98), frameon=False,
                        columnspacing=1.2, handlelength=1.5)  # fmt: skip
        figure.savefig(path, dpi=100)
        plt.close(figure)


def _draw_volume(axis: Any, run: Run, edges: NDArray[np.float64]) -> None:
    """Data that were taken in; a session counts when it ends."""
    middle, width = (edges[1:] + edges[:-1]) / 120, edges[1] - edges[0]
    right = axis.twinx()
    for side, name, factor, colour, label in (
        (axis, "readouts", 1, "first", "taken in [readouts/s]"),
        (right, "sent", 1e-6, "second", "taken in [MB/s]"),
    ):
        values = _binned([(time, getattr(each, name)) for time, each in run.reports], edges)
        side.plot(middle, [factor * each.sum() / width for each in values], color=COLOURS[colour])
        side.set_ylim(0)
        side.set_ylabel(label, color=COLOURS[colour])
    right.grid(visible=False)


def _draw_latency(axis: Any, run: Run, edges: NDArray[np.float64]) -> None:
    """Times of whole sessions that run as fast as they can, and of spiral frames."""
    whole = [(time, each) for time, each in run.reports if each.fault == "none" and not each.problem]
    groups = {
        f"whole session, {scan}": [(time, each.seconds) for time, each in whole if each.scan == scan]
        for scan in ("simplefft", "null")
    }
    frames = [(time, latency) for time, each in whole for latency in each.latencies]
    groups["last readout of a spiral frame to its image"] = frames
    for (label, pairs), colour in zip(groups.items(), ("first", "third", "second"), strict=True):
        values = _binned(pairs, edges)
        for share, style in ((50, "-"), (95, ":")):
            line = [1e3 * np.percentile(each, share) if each.size else np.nan for each in values]
            axis.plot((edges[1:] + edges[:-1]) / 120, line, style, color=COLOURS[colour],
                      label=label if share == 50 else None)  # fmt: skip
    axis.set(yscale="log", ylabel="median, 95 % (dotted) [ms]")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("")


def _draw_samples(memory: Any, counts: Any, run: Run) -> None:
    """Memory, and what else may leak."""
    clock = [sample.time / 60 for sample in run.samples]
    for axis, name, factor, colour, label in (
        (memory, "tree", 1 / MIB, "second", "with all its processes"),
        (memory, "memory", 1 / MIB, "first", "the server's own process"),
        (counts, "handles", 1, "second", "open files and sockets"),
        (counts, "threads", 1, "first", "threads"),
        (counts, "children", 1, "third", "child processes"),
        (counts, "temporary", 1, "bad", "temporary files"),
    ):
        values = [factor * getattr(sample, name) for sample in run.samples]
        axis.plot(clock, values, color=COLOURS[colour], lw=0.9, label=label)
    memory.set(ylabel="memory [MiB]", ylim=(0, None))
    counts.set(ylabel="number", ylim=(0, None))


def _draw_outcomes(axis: Any, run: Run) -> None:
    """Numbers of sessions by their endings."""
    groups = {"as they have to": [], "broken off by the client": [], "wrong": []}
    for time, each in run.reports:
        kind = 2 if each.problem else 1 if each.fault in ("cut", "reset") else 0
        list(groups.values())[kind].append(time / 60)
    for (label, times), colour in zip(groups.items(), ("third", "quiet", "bad"), strict=True):
        steps = [0, *sorted(times), run.seconds / 60]
        counts = [*range(len(times) + 1), len(times)]
        axis.plot(steps, counts, color=COLOURS[colour], label=f"{label}: {len(times)}", drawstyle="steps-post")
    axis.set(ylabel="sessions that ended", xlabel="time [min]", ylim=(0, None), xlim=(0, run.seconds / 60))
