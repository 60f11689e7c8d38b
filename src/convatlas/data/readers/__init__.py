"""Readers: one file for each way in which data is stored."""
