"""Tests, folder for folder as aneurysm/."""
