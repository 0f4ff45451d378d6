"""Batch, model -> checkpoint: losses, patient-level folds, the score."""
