"""Volume -> CachedVolume."""
