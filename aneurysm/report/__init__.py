"""CachedVolume, Prediction -> pictures, metrics, one HTML page."""
