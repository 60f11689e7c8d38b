"""How a training step is carried out on a CPU."""
