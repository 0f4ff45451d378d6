"""Timings beside other tools: `make bench`. Not installed with the package."""
