"""Tests of aneurysm.volume through the cache that comes out."""
