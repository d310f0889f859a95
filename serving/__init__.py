"""One session from its first byte to its last, and the limits and services for many sessions."""
