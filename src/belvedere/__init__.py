"""Learn image representations without labels."""
