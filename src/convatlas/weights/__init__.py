"""Weights on disk: model files, published weights, foreign checkpoints."""
