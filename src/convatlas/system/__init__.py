"""This machine: files, cache, downloads, progress, devices; independent of networks."""
