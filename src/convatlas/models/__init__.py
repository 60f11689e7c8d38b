"""The catalog: every network by name."""
