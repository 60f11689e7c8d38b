"""What differs between tasks: losses, metrics, images of results."""
