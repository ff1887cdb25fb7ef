"""Render-and-compare: the loss of a mesh in a pose against a feature map, in several renderers."""
