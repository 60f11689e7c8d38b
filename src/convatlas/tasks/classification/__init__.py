"""Single-label and multi-label image classification."""
