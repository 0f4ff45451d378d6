"""DICOM files -> Series."""
