"""Pose prediction in arbitrary photographs, which come without annotations."""
