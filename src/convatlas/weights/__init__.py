"""Weights on disk: model files, pretrained weights, and checkpoints of other libraries."""
