"""Batch -> logits: one file per architecture, one registry; importing it loads torch, not MONAI."""
