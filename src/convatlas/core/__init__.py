"""What a network is, and what is read off it."""
