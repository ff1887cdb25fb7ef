"""The training loop, with its state on disk, its validation and its logs."""
