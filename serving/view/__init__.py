"""Live view in the browser (``main.py --view``): what sessions receive and send, shown while it happens.

`feed` stands in the session and hands copies over, `hub` keeps a bounded history, `frames` makes images compact,
`site` serves the page and its viewers, `page` is the page. A session never waits for a viewer.
"""


class ViewError(Exception):
    """The view cannot be served; the message says why in one line."""
