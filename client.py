"""MRD client: sends a file to a server, keeps the images that come back (`sending.clientsession`)."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable

# Windows has no SIGHUP.
ENDING_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def _handle_signals(handler: Callable[[int, object], None]) -> None:
    for signum in ENDING_SIGNALS:
        if signal.getsignal(signum) != signal.SIG_IGN:  # as nohup has it
            signal.signal(signum, handler)


def _reason(signum: int) -> str:
    return "interrupted" if signum == signal.SIGINT else f"ended by {signal.Signals(signum).name}"


def _end_at_once(signum: int, frame: object) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        os.write(2, f"error: {_reason(signum)}\n".encode())
    os._exit(128 + signum)


if __name__ == "__main__":  # the imports take their time, and there is nothing yet to be brought to an end
    _handle_signals(_end_at_once)

import argparse
import logging
import math
import time
from pathlib import Path

from mrdio.commandline import log_to, number
from mrdio.h5groups import MrdFileError
from sending.clientsession import INTERRUPT_WAIT, ClientError, ClientOptions, Result, run, where_kept
from sending.exports import writer_for
from sending.pipes import STANDARD, input_file


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Sends an MRD file to an MRD server and keeps the images that come back."
    )
    add = parser.add_argument
    source = "input: MRD .h5, ISMRMRD stream, MRD version 2 stream or NIfTI file; - is standard input"
    output = "output: MRD .h5 file, NIfTI if it ends in .nii or .nii.gz, MRD version 2 stream if it ends in .mrd2 "
    output += "(default: the input's name with _results.h5); - is standard output"
    add("filename", type=Path, help=source)
    add("-a", "--address", default="localhost", help="address of the server (default: %(default)s)")
    add("-p", "--port", type=number(1, high=65535), default=9002, help="port of the server (default: %(default)s)")
    add("-o", "--outfile", type=Path, help=output)
    add("-g", "--in-group", help="group of the input file (default: the only one)")
    add("-G", "--out-group", help="group of the output file (default: date and time)")
    add("--overwrite", action="store_true", help="replace the group of the output file if it is there already")
    add("-c", "--config", default=None, help="module that the server is to run (default: invertcontrast)")
    add("-C", "--config-local", type=Path, help="local file whose text is sent as the config")
    add("-w", "--send-waveforms", action="store_true", help="send waveforms too, in time order between the readouts")
    add("--ignore-json-config", action="store_true", help="ignore modules named in JSON parameters (as with -c)")
    add("--strict", action="store_true", help="end with an error if the server does not know the module")
    add("--fix-transposed", action="store_true", help="transpose an image when that makes it fit its series")
    add("--mrd2gif", action="store_true", help="make a GIF of the images")
    add("--realtime", action="store_true", help="send at the pace of the scan, and report how well that went")
    add("--loop", action="store_true", help="with --realtime: send the file again and again, and keep no images")
    add("-v", "--verbose", action="store_true", help="log details")
    add("-l", "--logfile", type=Path, help="log into this file as well")
    add("--quiet", action="store_true", help="print errors only")
    silence = "longest silence of the server (default: %(default)s)"
    add("--timeout", type=number(0.1, float), default=3600.0, metavar="SECONDS", help=silence)
    options = parser.parse_args(arguments)
    if options.loop and not options.realtime:
        parser.error("--loop needs --realtime")
    if options.loop and (options.outfile or options.out_group or options.mrd2gif):
        parser.error("--loop keeps no images: leave out -o, -G and --mrd2gif")
    if options.filename == STANDARD and options.outfile is None and not options.loop:
        parser.error("the output needs a name: give it with -o (-o - is standard output)")
    if options.mrd2gif and writer_for(options.outfile) is not None:
        parser.error(f"--mrd2gif needs images in an .h5 file, not in {options.outfile}")
    return options


def configure_logging(verbose: bool, quiet: bool, logfile: Path | None) -> None:
    """Log to standard error, errors only if quiet, and to a file if asked."""
    console = logging.StreamHandler()
    console.setLevel(logging.ERROR if quiet else logging.NOTSET)
    log_to(console, verbose, logfile)


class Interrupted(KeyboardInterrupt):
    """The program was told to end by a signal, whose number is the argument."""


def interrupt_on_signals() -> None:
    """Let Ctrl+C, SIGTERM and SIGHUP raise `Interrupted` in the main thread, but those that are ignored already.

    Once there was one, the run has `INTERRUPT_WAIT` to end: signals that come meanwhile do nothing, and one that comes
    later ends it at once.
    """
    first = math.inf

    def interrupt(signum: int, frame: object) -> None:
        nonlocal first
        if first == math.inf:
            first = time.monotonic()
            raise Interrupted(signum)
        if time.monotonic() - first > INTERRUPT_WAIT:
            os._exit(128 + signum)

    _handle_signals(interrupt)


def ignore_signals() -> None:
    """Ignore signals at the end of the program: Python would end with another exit status."""
    for signum in ENDING_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


def main() -> int:
    """Run the client; returns the exit status: 0, 1 after an error, 128 + the signal when interrupted."""
    arguments = parse_arguments()
    try:
        interrupt_on_signals()
        status = _run_command(arguments)
        ignore_signals()
    except KeyboardInterrupt as error:
        signum = error.args[0] if isinstance(error, Interrupted) else signal.SIGINT
        with contextlib.suppress(OSError):  # the terminal may be gone
            if sys.stderr.isatty():
                print(file=sys.stderr)  # ends the line that shows the progress
            print("error: " + "; ".join([_reason(signum), *getattr(error, "__notes__", ())]), file=sys.stderr)
        ignore_signals()
        return 128 + signum
    return status


def _run_command(arguments: argparse.Namespace) -> int:
    try:
        configure_logging(arguments.verbose, arguments.quiet, arguments.logfile)
    except OSError as error:
        print(f"error: the log file cannot be written: {error}", file=sys.stderr)
        return 1
    try:
        with input_file(arguments.filename) as source:
            return _send(arguments, source)
    except MrdFileError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _send(arguments: argparse.Namespace, source: Path) -> int:
    options = ClientOptions(
        source=source,
        in_group=arguments.in_group,
        output=arguments.outfile,
        out_group=arguments.out_group,
        address=arguments.address,
        port=arguments.port,
        config=arguments.config or "invertcontrast",
        config_file=arguments.config_local,
        ignore_json_config=arguments.ignore_json_config or arguments.config is not None,
        send_waveforms=arguments.send_waveforms,
        fix_transposed=arguments.fix_transposed,
        timeout=arguments.timeout,
        progress=show_progress if sys.stderr.isatty() and not arguments.quiet else None,
        realtime=arguments.realtime,
        keep=not arguments.loop,
        strict=arguments.strict,
        overwrite=arguments.overwrite,
    )
    status = _run_once(arguments, options)
    while arguments.loop and status == 0:
        status = _run_once(arguments, options)
    return status


def _run_once(arguments: argparse.Namespace, options: ClientOptions) -> int:
    try:
        result = run(options)
    except (ClientError, MrdFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.progress is not None:
        print(file=sys.stderr)
    if not arguments.quiet:
        print_summary(result, options.keep)
    if arguments.mrd2gif and result.received["images"] and result.part is None:
        import mrd2gif

        try:
            pictures = mrd2gif.convert(result.output, result.group)
            if not arguments.quiet:
                print("\n".join(f"picture  {picture}" for picture in pictures))
        except (OSError, ValueError) as error:
            result.errors.append(f"no picture could be made: {error}")
    if result.errors:
        kept = [] if result.part is None else [where_kept(result.part, result)]
        print("error: " + "; ".join([result.errors[0], *kept]), file=sys.stderr)
        return 1
    return 0


def show_progress(sent: int, total: int | None, received: int) -> None:
    """Show in the terminal's last line how far the session is."""
    of_total = "" if total is None else f" of {total}"
    print(f"\rsent {sent}{of_total}, received {received} images ", end="", file=sys.stderr, flush=True)


def print_summary(result: Result, kept: bool = True) -> None:
    """Print how much was sent and received, and where the images are, if they were kept.

    To standard error where the images are in standard output.
    """
    file = sys.stderr if result.output == STANDARD else sys.stdout

    def listed(counts: dict[str, int]) -> str:
        return ", ".join(f"{count} {kind}" for kind, count in counts.items())

    lines = [f"sent     {listed(result.sent)}", f"received {listed(result.received)} in {result.seconds:.1f} s"]
    if result.fallbacks:
        lines.append(f"fallback {result.fallbacks} of the images are simple fallback images: the reconstruction failed")
    if result.pace:
        lines.append(result.pace)
    if result.files:
        lines += [f"output   {path}" for path in result.files if path != STANDARD]
    elif kept and any(result.received.values()) and result.part is None:
        lines.append(f"output   {result.output} group '{result.group}'")
    print("\n".join(lines), file=file)


if __name__ == "__main__":
    sys.exit(main())
