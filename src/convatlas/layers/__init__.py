"""Layers that torch does not have, each with its cost rule, and the small chains that all families are made of."""
