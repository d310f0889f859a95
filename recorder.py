"""Puts streams that were left behind into MRD .h5 files.

``python recorder.py FOLDER`` converts the recordings of a server, ``python recorder.py STREAM -o out.h5 -G GROUP`` puts
what an interrupted run of the client has left into its output.
"""

import argparse
import json
import logging
import os
import sys
from datetime import datetime
from pathlib import Path

from mrdio.commandline import log_to
from mrdio.conversion import CONVERSION_LIMITS, convert_stream, finish_leftovers
from mrdio.limits import Limits, add_limits, read_limits
from mrdio.recordings import DEFAULT_FOLDER
from mrdio.streamfiles import FILE_MODE, FOLDER_MODE
from sending.outputfile import ERROR, join, reason

logger = logging.getLogger(__name__)


def follow(limits: Limits) -> None:
    """Convert the streams that standard input names, for a `converter.Converter`: a JSON line each, [path, token].

    When one is done, its token is printed: ``{"done": token}``. What a library prints cannot pass for that.
    """
    for line in sys.stdin:
        path, token = json.loads(line)
        convert_stream(Path(path), limits)
        print("\n" + json.dumps({"done": token}), flush=True)  # behind whatever was printed without a line end


def put_into(output: Path, stream: Path, group: str, overwrite: bool) -> int:
    """Put the stream of an interrupted run of the client into a group of its output; returns the exit status."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        join(stream, output, group, overwrite)
    except Exception as error:  # noqa: BLE001 -- whatever it is, the stream is kept, and the user is told in one line
        print(ERROR + reason(error, output), file=sys.stderr)
        return 1
    return 0


def main() -> int:
    """Convert a stream, or what was left in a folder; returns the exit status."""
    parser = argparse.ArgumentParser(description="Put streams that were left behind into MRD .h5 files.")
    parser.add_argument("path", type=Path, nargs="?", help=f"folder (default: {DEFAULT_FOLDER}), or one stream")
    parser.add_argument("-o", "--outfile", type=Path, help="put the stream of an interrupted client into this .h5 file")
    parser.add_argument("-G", "--out-group", default=str(datetime.now()), help="its group (default: date and time)")
    parser.add_argument("--overwrite", action="store_true", help="replace the group if it is there already")
    parser.add_argument("--log-json", dest="as_json", action="store_true", help="log JSON, one object a line")
    parser.add_argument("--follow", action="store_true", help=argparse.SUPPRESS)
    add_limits(parser, *CONVERSION_LIMITS)
    arguments = parser.parse_args()
    if arguments.outfile is not None:
        if arguments.path is None:
            parser.error("-o needs the stream that is to be put into it")
        return put_into(arguments.outfile, arguments.path, arguments.out_group, arguments.overwrite)
    os.umask(os.umask(0o777) | (0o777 & ~FILE_MODE & ~FOLDER_MODE))  # HDF5 makes files with the mode that this leaves
    log_to(logging.StreamHandler(sys.stdout), False, None, as_json=arguments.as_json)
    limits = read_limits(arguments)
    path = arguments.path or Path(DEFAULT_FOLDER)
    if arguments.follow:
        follow(limits)
        return 0
    if path.is_dir():
        finished = finish_leftovers(path, limits)
        if finished:
            logger.info("%d recordings finished in %s", len(finished), path)
    elif path.exists():
        convert_stream(path, limits)
    else:
        logger.error("There is no folder %s", path)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
