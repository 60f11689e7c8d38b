"""One file a family: its blocks, its table, its variants."""
