"""Immutable cache recipes, one TOML file per version; `--spec NAME` finds them here."""
