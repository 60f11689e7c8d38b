"""This machine: files, cache, downloads, progress, devices; it knows no network."""
