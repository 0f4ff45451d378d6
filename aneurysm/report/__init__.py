"""CachedVolume -> pictures."""
