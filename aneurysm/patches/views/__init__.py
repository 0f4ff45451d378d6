"""What a model sees of a volume: boxes of it, slices, or projections."""
