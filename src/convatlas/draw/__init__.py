"""Diagrams, charts and contact sheets."""
