"""Tests of aneurysm.dicom through the cache that comes out."""
