"""Seed -> RSNA-shaped DICOM data set with known truth."""
