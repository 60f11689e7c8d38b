"""Training: recipes, the loop, runs that can be stopped at any step."""
