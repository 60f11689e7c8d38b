"""One file for each paper or line of papers."""
