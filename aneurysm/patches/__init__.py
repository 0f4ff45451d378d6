"""CachedVolume -> Patch -> Batch: where patches lie, their labels, the way to the device, augmentation."""
