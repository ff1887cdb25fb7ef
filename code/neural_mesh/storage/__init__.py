"""Readers and writers of every file that passes between stages, and where each file lies."""
