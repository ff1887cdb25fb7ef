"""One module for each entry point in `code/`: the stage behind it, from paths to paths."""
