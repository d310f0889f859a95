"""All benchmarks, one table after the other: ``python benchmarks``."""

import runpy
from pathlib import Path

for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
    print(f"\n## {path.stem}\n", flush=True)
    runpy.run_path(str(path), run_name="__main__")
