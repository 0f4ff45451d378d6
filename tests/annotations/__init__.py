"""Tests of aneurysm.annotations through the cache that comes out."""
