"""The stages, one module for each entry point: typed functions from paths to paths."""
