"""Texts for the client that are said once, however often their reason occurs."""

from collections.abc import Callable


def once(send: Callable[[str], None]) -> Callable[[str], None]:
    """Return a function that sends each text once."""
    sent: set[str] = set()

    def send_once(text: str) -> None:
        if text not in sent:
            sent.add(text)
            send(text)

    return send_once
