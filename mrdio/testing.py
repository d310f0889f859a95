"""Stand-in for a connection, to try a module or a part of it without a server."""

from collections.abc import Iterable
from typing import Any

import ismrmrd

import constants


class Recording(list):
    """Connection that yields what it was made of, and keeps what is sent.

    It has what `connection.Connection` has for modules; ``doc/helpers.md`` lists it.

    Parameters
    ----------
    items
        Readouts, images and waveforms [messages], in the order in which they come.
    dependencies
        Measurement of each kind that `dependency` finds, such as ``{"Noise": Recording(...)}``.

    Attributes
    ----------
    sent : list of ismrmrd.Image
        Images, in the order in which they were sent.
    waveforms : list of ismrmrd.Waveform
        Waveforms that were sent.
    said : list of (str, str)
        Level and text of what the client's user was told; the level of a plain text is empty.
    arrays : list of (str, array)
        Name and array of each call of `debug`.
    """

    def __init__(self, items: Iterable[Any] = (), dependencies: dict[str, Any] | None = None) -> None:
        super().__init__(items)
        self._dependencies = dependencies or {}
        self.sent: list[ismrmrd.Image] = []
        self.waveforms: list[ismrmrd.Waveform] = []
        self.said: list[tuple[str, str]] = []
        self.arrays: list[tuple[str, Any]] = []

    def send_image(self, images: ismrmrd.Image | Iterable[ismrmrd.Image | None] | None) -> None:
        """Keep an image, or several; None among them is skipped."""
        each = [images] if images is None or isinstance(images, ismrmrd.Image) else images
        self.sent += [image for image in each if image is not None]

    def send_waveform(self, waveform: ismrmrd.Waveform) -> None:
        """Keep a waveform."""
        self.waveforms.append(waveform)

    def send_text(self, text: str) -> None:
        """Keep a text."""
        self.said.append(("", text))

    def send_logging(self, level: str, text: str) -> None:
        """Keep a line of a level such as ``constants.MRD_LOGGING_INFO``."""
        self.said.append((level.strip(), text))

    def info(self, text: str) -> None:
        """Keep a line."""
        self.send_logging(constants.MRD_LOGGING_INFO, text)

    def warn(self, text: str) -> None:
        """Keep a warning."""
        self.send_logging(constants.MRD_LOGGING_WARNING, text)

    def send_close(self) -> None:
        """Do nothing: modules for other servers call it at their end."""

    def debug(self, name: str, array: Any) -> None:
        """Keep an array."""
        self.arrays.append((name, array))

    def dependency(self, kind: str) -> Any:
        """Measurement of a kind, None where there is none."""
        return self._dependencies.get(kind)
