"""The pose solver, the choice of its renderer, and runs over whole sets of images."""
