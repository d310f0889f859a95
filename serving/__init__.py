"""One session from its first byte to its last, and what the server needs for many of them."""
