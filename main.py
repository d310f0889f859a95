"""Command line of the MRD server: arguments, logging, signals."""

import argparse
import functools
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

# Before NumPy is loaded. Sessions run side by side, and OpenBLAS's threads wait for each other in turns of the
# scheduler where others use the processor: a matrix of 336 x 336 may then take seconds.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from mrdio.commandline import log_to, number
from mrdio.limits import add_limits, flag_of, read_limits
from mrdio.recordings import DEFAULT_FOLDER
from recon.configuration import PROJECT_FOLDER
from server import Server, ServerOptions
from serving.metrics import Metrics, MetricsError
from serving.module_loader import ModuleError
from serving.processes import leave
from serving.session import DEPENDENCIES, SessionOptions
from serving.view import ViewError

if TYPE_CHECKING:  # the view is imported when it is asked for
    from serving.view.site import View

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
    add("--dependencyFolder", type=Path, metavar="FOLDER",
        help="where to keep measurements that later scans depend on, sent with the config savedep (default: "
        f"{DEPENDENCIES}, beside the folder of what is saved)")  # fmt: skip
    add("--convertLater", action="store_true",
        help="leave what is saved as ISMRMRD streams, which `python recorder.py FOLDER` turns into .h5")  # fmt: skip
    add("-m", "--multiprocessing", action="store_true", help="give each connection a process instead of a thread")
    add("-r", "--crlf", action="store_true", help="end log lines with CR LF, for consoles that want it")
    add("--log-json", dest="logJson", action="store_true", help="log JSON, one object a line, for machines")
    add("--metrics", type=number(0, high=65535), metavar="PORT",
        help="serve Prometheus metrics on this port of 127.0.0.1; 0: any free one")  # fmt: skip
    add("--view", type=number(0, high=65535), metavar="PORT",
        help="show the sessions live in a browser, on this port; 0: any free one")  # fmt: skip
    add("--viewHost", default="127.0.0.1", metavar="HOST",
        help="address of the view; others than 127.0.0.1 show it to everybody who reaches them")  # fmt: skip
    add("--viewNames", action="store_true", help="show patients' names in the view")
    add("--no-fallback", dest="fallback", action="store_false",
        help="send no simple fallback image when a reconstruction fails")  # fmt: skip
    add("-M", "--moduleFolder", type=Path, action="append", default=[], metavar="FOLDER",
        help="further folder with modules; may be given several times")  # fmt: skip
    add("--debug-folder", "--debugFolder", dest="debugFolder", type=Path, metavar="FOLDER",
        help="write the arrays that modules name with connection.debug into this folder")  # fmt: skip
    add("--grace", type=number(0, float), default=30.0, metavar="SECONDS",
        help="time that running sessions get to end after Ctrl+C or SIGTERM; a second signal ends at once")  # fmt: skip
    add("--overload", choices=("refuse", "wait"), default="refuse",
        help="what becomes of sessions that there is no place for: they are told so, or wait for one")  # fmt: skip
    add_limits(parser)
    options = parser.parse_args(arguments)
    if read_limits(options).session_memory and not options.multiprocessing:
        parser.error(f"{flag_of('session_memory')} needs -m: how much memory one of several threads uses is not known")
    return options


def configure_logging(verbose: bool, logfile: Path | None, crlf: bool, as_json: bool = False) -> None:
    """Log to standard output, and to a file if asked; also called in each process of the server."""
    line_end = "\r\n" if crlf else "\n"
    log_to(logging.StreamHandler(sys.stdout), verbose, logfile, line_end, sessions=True, as_json=as_json)


def warn_of_namesakes(folder: Path) -> None:
    """Warn of files and packages in a module folder with the name of a server file, which is imported instead."""
    if folder == PROJECT_FOLDER:
        return
    for path in sorted(folder.iterdir()):
        name = path.stem if path.suffix == ".py" else path.name if path.is_dir() else ""
        own = PROJECT_FOLDER / name
        if name.isidentifier() and (own.with_suffix(".py").is_file() or (own / "__init__.py").is_file()):
            logger.warning("%s: the server has a %s, too, and 'import %s' gets that one: choose another name",
                path, f"folder {name}" if own.is_dir() else f"file {name}.py", name)  # fmt: skip


def open_view(arguments: argparse.Namespace) -> "View":
    """Serve the live view.

    Raises
    ------
    ViewError
        If the address cannot be listened on, or the package that it needs is not installed.
    """
    try:
        from serving.view.site import View
    except ImportError as error:
        raise ViewError("--view needs the package websockets: pip install websockets") from error
    return View(arguments.view, arguments.viewHost, arguments.viewNames)


def main() -> int:
    """Run the server until it is told to stop; returns the exit status."""
    arguments = parse_arguments()
    setup = functools.partial(
        configure_logging, arguments.verbose, arguments.logfile, arguments.crlf, arguments.logJson
    )
    try:
        setup()
    except OSError as error:
        print(f"error: the log file cannot be written: {error}", file=sys.stderr)
        return 1
    # Modules may import files of their folder; at the end of the path, nothing in these folders shadows a library.
    folders = list(dict.fromkeys(path.resolve() for path in (PROJECT_FOLDER, Path.cwd(), *arguments.moduleFolder)))
    for folder in folders:
        if not folder.is_dir():
            logger.error("There is no module folder %s", folder)
            return 1
    sys.path.extend(str(folder) for folder in folders if str(folder) not in sys.path)
    for path in arguments.moduleFolder:
        warn_of_namesakes(path.resolve())
    options = ServerOptions(
        host=arguments.host,
        port=arguments.port,
        processes=arguments.multiprocessing,
        overload=arguments.overload,
        grace=arguments.grace,
        setup_process=setup,
        session=SessionOptions(
            default_config=arguments.defaultConfig,
            module_folders=tuple(folders),
            save_data=arguments.savedata,
            save_folder=arguments.savedataFolder,
            convert=not arguments.convertLater,
            limits=read_limits(arguments),
            dependency_folder=arguments.dependencyFolder,
            debug_folder=arguments.debugFolder,
            fallback_memory=SessionOptions.fallback_memory if arguments.fallback else 0,
        ),
    )
    try:
        metrics = None if arguments.metrics is None else Metrics(arguments.metrics)
        view = None if arguments.view is None else open_view(arguments)
        server = Server(options, view=view) if metrics is None else Server(options, metrics.count, view)
    except (OSError, ValueError, ModuleError, MetricsError, ViewError) as error:
        logger.error("The server cannot start: %s", error)
        return 1

    if metrics is not None:
        metrics.watch(running=lambda: server.running, waiting=lambda: server.waiting)
    stopping = False

    def on_signal(signum: int, frame: object) -> None:
        nonlocal stopping
        if stopping:
            server.kill_sessions()
            leave(128 + signum)
        stopping = True
        server.stop()

    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup sets it
        signal.signal(signal.SIGHUP, on_signal)  # the terminal is closed
    server.serve()
    logger.info("The server has ended")
    return leave(0)


if __name__ == "__main__":
    sys.exit(main())
