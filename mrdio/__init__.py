"""MRD as bytes, messages, headers and files, and the limits that they are held to."""
