"""Model, volume -> the answer of a series: windows, stitching, candidates; for validation and prediction."""
