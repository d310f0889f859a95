"""The iterative reconstruction of our own, its parts: operators, algorithm, what they stand on; see doc/native.md."""
