"""What differs between tasks: losses, metrics, pictures of results."""
