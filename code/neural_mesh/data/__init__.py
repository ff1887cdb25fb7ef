"""Data sets: readers of published annotations, synthetic occluders, and loaders for training."""
