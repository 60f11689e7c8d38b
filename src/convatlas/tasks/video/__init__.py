"""Videos: classification of clips, whose probabilities are averaged over a video."""
