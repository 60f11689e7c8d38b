"""Statements of textbooks about convolutional networks as experiments with verdicts; one file each."""
