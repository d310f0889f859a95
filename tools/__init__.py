"""Commands for maintainers and for packaging: fuzzing, soak, labels of scanner apps."""
