"""Using a model: predict, export, quantize, benchmark, serve."""
