"""Command line of the MRD server: arguments, logging, signals."""

import argparse
import functools
import logging
import os
import signal
import sys
from pathlib import Path

from codec import MIB, Limits
from commandline import log_to, number
from configuration import PROJECT_FOLDER
from module_loader import ModuleError
from recorder import DEFAULT_FOLDER
from server import Server, ServerOptions
from session import SessionOptions

logger = logging.getLogger(__name__)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Serves the MRD (ISMRM Raw Data) streaming protocol: reconstructs what clients send.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("-p", "--port", type=number(0, high=65535), default=9002, help="port to listen on; 0: any free one")
    add("-H", "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: every network of this machine")
    add("-d", "--defaultConfig", default="invertcontrast", metavar="CONFIG",
        help="module that runs when a client's config names none")  # fmt: skip
    add("-v", "--verbose", action="store_true", help="log details")
    add("-l", "--logfile", type=Path, help="log into this file as well")
    add("-s", "--savedata", action="store_true", help="save what clients send")
    add("-S", "--savedataFolder", type=Path, default=Path(DEFAULT_FOLDER), metavar="FOLDER",
        help="where to save what clients send")  # fmt: skip
    add("-m", "--multiprocessing", action="store_true", help="give each connection a process instead of a thread")
    add("-r", "--crlf", action="store_true", help="end log lines with CR LF, for consoles that want it")
    add("-M", "--moduleFolder", type=Path, action="append", default=[], metavar="FOLDER",
        help="further folder with modules; may be given several times")  # fmt: skip
    add("--debug-folder", "--debugFolder", dest="debugFolder", type=Path, metavar="FOLDER",
        help="write the arrays that modules name with connection.debug into this folder")  # fmt: skip
    add("--timeout", type=number(0.1, float), default=3600.0, metavar="SECONDS",
        help="longest silence of a client before its session is ended")  # fmt: skip
    add("--grace", type=number(0, float), default=30.0, metavar="SECONDS",
        help="time that running sessions get to end after Ctrl+C or SIGTERM; a second signal ends at once")  # fmt: skip
    add("--maxSessions", type=number(1), default=64, metavar="N", help="how many connections are served at once")
    add("--maxMessage", type=number(1), default=Limits.data // MIB, metavar="MIB",
        help="largest readout, image or waveform accepted [MiB]")  # fmt: skip
    add("--maxText", type=number(1), default=Limits.text // MIB, metavar="MIB",
        help="largest header, text or attribute list accepted [MiB]")  # fmt: skip
    return parser.parse_args(arguments)


def configure_logging(verbose: bool, logfile: Path | None, crlf: bool) -> None:
    """Log to standard output, and to a file if asked; also called in each process of the server."""
    log_to(logging.StreamHandler(sys.stdout), verbose, logfile, "\r\n" if crlf else "\n")


def main() -> int:
    """Run the server until it is told to stop; returns the exit status."""
    arguments = parse_arguments()
    setup = functools.partial(configure_logging, arguments.verbose, arguments.logfile, arguments.crlf)
    try:
        setup()
    except OSError as error:
        print(f"error: the log file cannot be written: {error}", file=sys.stderr)
        return 1
    # Modules may import their neighbours; at the end of the path, nothing in these folders shadows a library.
    folders = list(dict.fromkeys(path.resolve() for path in (PROJECT_FOLDER, Path.cwd(), *arguments.moduleFolder)))
    for folder in folders:
        if not folder.is_dir():
            logger.error("There is no module folder %s", folder)
            return 1
    sys.path.extend(str(folder) for folder in folders if str(folder) not in sys.path)
    options = ServerOptions(
        host=arguments.host,
        port=arguments.port,
        processes=arguments.multiprocessing,
        max_sessions=arguments.maxSessions,
        grace=arguments.grace,
        setup_process=setup,
        session=SessionOptions(
            default_config=arguments.defaultConfig,
            module_folders=tuple(folders),
            save_data=arguments.savedata,
            save_folder=arguments.savedataFolder,
            limits=Limits(text=arguments.maxText * MIB, data=arguments.maxMessage * MIB),
            timeout=arguments.timeout,
            debug_folder=arguments.debugFolder,
        ),
    )
    try:
        server = Server(options)
    except (OSError, ValueError, ModuleError) as error:
        logger.error("The server cannot start: %s", error)
        return 1

    stopping = False

    def on_signal(signum: int, frame: object) -> None:
        nonlocal stopping
        if stopping:
            server.kill_sessions()
            os._exit(128 + signum)
        stopping = True
        server.stop()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    server.serve()
    logger.info("The server has ended")
    logging.shutdown()
    # A module that still computes in a thread, deep in a library, must not keep the process from ending.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
