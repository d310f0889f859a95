"""Run a notebook from top to bottom in a kernel of its own, and keep its outputs.

    python tools/notebook.py doc/tour.ipynb

Needs nbclient and ipykernel (requirements-test.txt). When a cell fails, the exit status is 1 and the file as before.
"""

import argparse
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError


def execute(path: Path, *checks: str) -> nbformat.NotebookNode:
    """Run the cells of a notebook in its folder.

    Parameters
    ----------
    path
        The notebook, which is left alone.
    checks
        Code of further cells that are run after the last and not kept.

    Returns
    -------
    The notebook with its outputs, without times and versions of the run.

    Raises
    ------
    CellExecutionError
        A cell failed.
    """
    notebook = nbformat.read(path, 4)
    kept, metadata = list(notebook.cells), dict(notebook.metadata)
    notebook.cells += [nbformat.v4.new_code_cell(code) for code in checks]
    NotebookClient(notebook, resources={"metadata": {"path": path.parent}}, record_timing=False).execute()
    notebook.cells, notebook.metadata = kept, nbformat.from_dict(metadata)
    return notebook


def main() -> int:
    """Run the notebooks that the command line names; returns the exit status."""
    parser = argparse.ArgumentParser(description="Run notebooks, and keep their outputs.")
    parser.add_argument("notebooks", nargs="+", type=Path, metavar="file.ipynb")
    for path in parser.parse_args().notebooks:
        try:
            nbformat.write(execute(path), path)
        except CellExecutionError as error:
            print(f"{path}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
