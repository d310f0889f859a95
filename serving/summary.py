"""Outcome of one session: its last line in the log, and the numbers that metrics count."""

import dataclasses
import json
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

LONGEST_WORD = 200  # of a text from outside, in a line [characters]


class Outcome(StrEnum):
    """Ways in which a session can end."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CLIENT_GONE = "client gone"
    INTERRUPTED = "interrupted"
    REFUSED = "refused"
    KILLED = "killed"


@dataclass
class SessionSummary:
    """Peer, module, traffic and ending of one session.

    Attributes
    ----------
    session : str
        Id of the session.
    peer : str
        Address and port of the client.
    config : str
        Config that the client asked for.
    module : str
        Module that ran.
    outcome : Outcome
        How it ended.
    reason : str
        Why, unless it was completed.
    received_readouts, received_waveforms, received_images, received_bytes : int
        Numbers of messages, and bytes, received.
    sent_readouts, sent_waveforms, sent_images, sent_bytes : int
        Numbers of messages, and bytes, sent; images include fallback images.
    fallback_images : int
        Simple images that were sent in place of those that the module did not make.
    errors : int
        Error messages to the client.
    seconds : float
        How long it took [s].
    """

    session: str
    peer: str = "-"
    config: str = ""
    module: str = ""
    outcome: Outcome = Outcome.RUNNING
    reason: str = ""
    received_readouts: int = 0
    received_waveforms: int = 0
    received_images: int = 0
    received_bytes: int = 0
    sent_readouts: int = 0
    sent_waveforms: int = 0
    sent_images: int = 0
    sent_bytes: int = 0
    fallback_images: int = 0
    errors: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.outcome = Outcome(self.outcome)

    def count(self, connection: Any) -> None:
        """Take over the counters of a connection."""
        kinds = {"readouts": "Acqs", "waveforms": "Waveforms", "images": "Images", "bytes": "Bytes"}
        for ours, theirs in kinds.items():
            setattr(self, f"received_{ours}", getattr(connection, f"recv{theirs}"))
            setattr(self, f"sent_{ours}", getattr(connection, f"sent{theirs}"))

    def end(self, outcome: Outcome, reason: str = "") -> None:
        """Note how it ended; the reason is cut to its first line."""
        self.outcome, self.reason = outcome, reason.partition("\n")[0][:LONGEST_WORD]

    def fields(self) -> dict[str, Any]:
        """Everything but the session's id, for log records that hold it already."""
        fields = dataclasses.asdict(self)
        del fields["session"]
        return fields

    def __str__(self) -> str:
        ending = f"{self.outcome}: {self.reason}" if self.reason else f"{self.outcome}"
        fallback = f" ({self.fallback_images} of them fallback)" if self.fallback_images else ""
        return (
            f"ended, {ending}; client {self.peer}, config {self.config!r}, {self.module or 'no module'}; "
            f"received {self.received_readouts} readouts, {self.received_waveforms} waveforms, "
            f"{self.received_images} images, {self.received_bytes / 1e6:.2f} MB; "
            f"sent {self.sent_readouts} readouts, {self.sent_waveforms} waveforms, "
            f"{self.sent_images} images{fallback}, {self.sent_bytes / 1e6:.2f} MB; {self.seconds:.2f} s"
        )

    # ---- from process to process -----------------------------------------------------------------------------------

    def to_json(self) -> bytes:
        """Everything as JSON."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Make a summary from the text that `to_json` gave."""
        return cls(**json.loads(text))
