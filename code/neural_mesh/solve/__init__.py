"""The pose solver, and models that it is fed by."""
