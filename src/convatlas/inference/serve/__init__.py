"""Serve a model over HTTP: images in, JSON out; requests share batches and are limited in size, number and time."""
