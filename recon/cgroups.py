"""Memory that Linux's control groups, with which containers are made, leave to this process."""

from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


def memory_of_groups() -> Iterator[tuple[int, int]]:
    """Limit and usage of the groups that this process lies in and that have a limit [bytes].

    File caches do not count as used. Yields nothing where there are no control groups.
    """
    try:
        lines = OWN_CGROUP.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = CGROUPS / "memory" if controllers else CGROUPS
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        group = root / path.lstrip("/")
        # In a container the path may be the host's, which is not mounted here: then the root is the container's own.
        for folder in dict.fromkeys([group, *group.parents, root]):
            if folder.is_relative_to(root) and (found := _read(folder, *names)) is not None:
                yield found


def _read(folder: Path, limit: str, usage: str) -> tuple[int, int] | None:
    """Limit and usage of one group; None where there is no limit."""
    try:
        most, used = int((folder / limit).read_text()), int((folder / usage).read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such group here, or "max"
        return None
    return most, used - int(statistics.get("total_inactive_file", statistics.get("inactive_file", "0")))
