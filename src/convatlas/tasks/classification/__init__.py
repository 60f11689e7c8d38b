"""Image classification, with one label or several for each image."""
