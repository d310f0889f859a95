"""Commands for maintainers and for packaging."""
