"""Data sets: annotations of others, occluders, images for training and testing."""
