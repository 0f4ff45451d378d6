"""Data folder -> cache: the run that builds it, on one node or many; verify and relabel."""
