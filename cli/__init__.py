"""Command line -> calls: one thin file per command."""
