"""Measure additive attention against its peers; nothing here asserts a time."""
