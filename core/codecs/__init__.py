"""Encoded files to pixels and back, one file a format."""
