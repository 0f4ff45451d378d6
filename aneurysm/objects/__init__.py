"""URL -> a local folder: caches and DICOM data in object stores, brought to this machine or made on it and sent."""
