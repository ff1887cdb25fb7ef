"""Render-and-compare: how well a mesh in a pose explains a feature map."""
