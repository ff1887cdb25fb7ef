"""Cameras, meshes, boxes and visibility: pure geometry in NumPy."""
