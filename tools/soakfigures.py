"""Figures of a soak: the problems of a run, a table in Markdown, a plot."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tools.soakclients import Report

MIB = 1 << 20

# How much the memory may be larger in the last quarter of a run than in the second one; in a short run the second one
# still belongs to the time in which each thread takes the memory that it will use again and again.
MAY_GROW_SHARE, MAY_GROW, JUDGED_FROM = 0.10, 32 * MIB, 150.0  # of it, [bytes], [s]
AT_REST = ("threads", "files", "processes", "recordings", "temporary")  # are to be back when the clients have gone

Sample = dict[str, float]  # time [s]; memory of the server's process and of the others [bytes]; what `AT_REST` names


@dataclass
class Run:
    """Everything that a run gathers: times [s], the server at rest and in between, sessions, and problems."""

    seconds: float
    before: Sample
    after: Sample
    samples: list[Sample]
    reports: list[tuple[float, Report]]
    killed: int = 0  # sessions whose client was killed
    recordings: int = 0
    saved: int = 0  # readouts and images in the recordings
    problems: list[str] = field(default_factory=list)


def growth(samples: Sequence[Sample]) -> tuple[float, float]:
    """Median of the memory in the second quarter of a run, when the server has warmed up, and in the last [bytes]."""
    values = [sample["memory"] for sample in samples]
    quarter = max(1, len(values) // 4)
    return float(np.median(values[quarter : 2 * quarter] or values)), float(np.median(values[-quarter:]))


def judge(run: Run) -> list[str]:
    """Problems of a run: sessions that ended wrongly, and anything that has grown."""
    wrong = Counter(f"{report.scan}, {report.fault}: {report.problem}" for _, report in run.reports if report.problem)
    problems = [f"{count} x {text}" for text, count in wrong.items()]
    early, late = growth(run.samples)
    if run.seconds >= JUDGED_FROM and late > (1 + MAY_GROW_SHARE) * early + MAY_GROW:
        problems.append(f"the server's memory has grown from {early / MIB:.0f} to {late / MIB:.0f} MiB")
    if run.after["helpers"] > (1 + MAY_GROW_SHARE) * run.before["helpers"] + MAY_GROW:
        helpers = " before, and ".join(f"{each['helpers'] / MIB:.0f}" for each in (run.before, run.after))
        problems.append(f"its helpers' memory was {helpers} MiB after")
    grown = [name for name in AT_REST if run.after[name] > run.before[name]]
    problems += [f"at rest there were {run.before[name]} {name} before, and {run.after[name]} after" for name in grown]
    return problems


def summary(run: Run) -> str:
    """Table of the run in Markdown."""
    reports = [report for _, report in run.reports]
    early, late = growth(run.samples)
    good = Counter(report.fault for report in reports if not report.problem)
    latencies = [latency for report in reports for latency in report.latencies]
    p50, p95, p99 = 1e3 * np.percentile(latencies or [np.nan], [50, 95, 99])
    rows = {
        "sessions": f"{len(reports) + run.killed} in {run.seconds / 60:.1f} min",
        "went to their end, every pixel right": f"{good['none'] + good['slow reader']}, of them {good['slow reader']} "
        "with a slow reader",
        "broken off by the client": f"{good['cut']} by the end of the stream, {good['reset']} by a reset, {run.killed} "
        "with their killed client",
        "**ended in any other way**": f"**{sum(bool(report.problem) for report in reports)}**",
        "taken in": f"{sum(report.readouts for report in reports) / run.seconds:.0f} readouts/s, "
        f"{sum(report.sent for report in reports) / 1e6 / run.seconds:.1f} MB/s",
        "recordings that were opened": f"{run.recordings}, with {run.saved} readouts and images",
        "last readout of a spiral frame to its image": f"p50 {p50:.3g}, p95 {p95:.3g}, p99 {p99:.3g} ms, of "
        f"{len(latencies)} images",
        "memory of the server's own process": f"{early / MIB:.0f} MiB in the second quarter, "
        f"{late / MIB:.0f} MiB in the last",
    }
    for name in AT_REST:
        rows[f"{name} at rest"] = f"{run.before[name]} before, {run.after[name]} after"
    lines = ["| soak | figure |", "| --- | --- |", *(f"| {name} | {figure} |" for name, figure in rows.items()), ""]
    problems = [f"PROBLEM: {problem}" for problem in run.problems] or ["no problems"]
    return "\n".join([*lines, *problems])


def draw(run: Run, path: Path) -> None:
    """Draw sessions that ended, the latency of frames, memory, and other counts that must not grow."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 9), layout="constrained")
    sessions, latency, memory, counts = figure.subplots(4, 1, sharex=True)
    clock = [sample["time"] / 60 for sample in run.samples]
    ends = [time / 60 for time, _ in run.reports]
    sessions.plot(ends, range(1, len(ends) + 1))
    sessions.set_ylabel("sessions that ended")
    slowest = [(time / 60, 1e3 * max(each.latencies)) for time, each in run.reports if each.latencies]
    latency.plot([time for time, _ in slowest], [latency for _, latency in slowest], ".")
    latency.set(yscale="log", ylabel="slowest spiral frame [ms]")
    memory.plot(clock, [sample["memory"] / MIB for sample in run.samples])
    memory.set(ylabel="memory [MiB]", ylim=(0, None))
    for name in AT_REST:
        counts.plot(clock, [sample[name] for sample in run.samples], label=name)
    counts.legend()
    counts.set(ylabel="number", xlabel="time [min]")
    figure.savefig(path, dpi=100)
