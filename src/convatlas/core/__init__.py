"""Networks as trees of layers: composition, specs, cost, preprocessing, records."""
