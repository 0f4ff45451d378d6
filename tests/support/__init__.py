"""Synthetic acquisitions whose pattern is known at every point of the patient, and readers of what came out."""
