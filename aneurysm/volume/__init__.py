"""Series -> Volume."""
