"""Figures, contact sheets and films that show poses, occluder maps and loss landscapes."""
