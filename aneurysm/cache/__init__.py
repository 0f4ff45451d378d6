"""The format of a cache, written and read: layout, metadata, shards, volumes, tables. No DICOM."""
