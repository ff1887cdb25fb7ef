"""Cameras, meshes, boxes, visibility and pose errors: pure geometry in NumPy, without files."""
