"""All benchmarks, into one page: ``python benchmarks [NAME ...]`` writes ``doc/benchmarks.md``.

With names, such as ``streaming realtime``, only these are run, and their parts of the page replaced.
"""

import datetime as dt
import platform
import re
import subprocess
import sys
from pathlib import Path

import psutil

FOLDER = Path(__file__).resolve().parent
PAGE = FOLDER.parent / "doc" / "benchmarks.md"
BEGINNING = """# Benchmarks

Written by `python benchmarks`. Ratios are of one run; times are those of the machine that each part names.
"""


def processor() -> str:
    """Name of the processor, and the number of its cores."""
    information = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", information.read_text()) if information.is_file() else None
    return f"{found[1] if found else platform.processor() or platform.machine()}, {psutil.cpu_count()} cores"


def parts(text: str) -> dict[str, str]:
    """Parts of the page by the name of their benchmark."""
    pieces = re.split(r"^## (\w+)$\n", text, flags=re.MULTILINE)[1:]
    return dict(zip(pieces[::2], pieces[1::2], strict=True))


def main(names: list[str]) -> int:
    """Run benchmarks one after the other; returns 1 when one fails, and leaves its part of the page as it was."""
    known = [path.stem for path in sorted(FOLDER.glob("[!_]*.py"))]
    if wrong := [name for name in names if name not in known]:
        print(f"there is no benchmark {wrong[0]!r}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    page = parts(PAGE.read_text("utf-8")) if PAGE.is_file() else {}
    status = 0
    for name in names or known:
        print(f"## {name}", flush=True)
        done = subprocess.run(
            [sys.executable, str(FOLDER / f"{name}.py")], stdout=subprocess.PIPE, text=True, check=False
        )
        print(done.stdout, flush=True)
        if done.returncode:
            print(f"{name} failed with exit status {done.returncode}", file=sys.stderr)
            status = 1
            continue
        where = f"{dt.date.today():%Y-%m-%d}, {processor()}, Python {platform.python_version()}"
        table = done.stdout.strip()
        table = table if table.startswith("|") else f"```\n{table}\n```"
        page[name] = f"\n`python benchmarks/{name}.py` ({where})\n\n{table}\n\n"
        text = BEGINNING + "".join(f"\n## {each}\n{page[each].rstrip()}\n" for each in known if each in page)
        PAGE.write_text(text, "utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
