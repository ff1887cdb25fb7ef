"""Anybody's photographs to poses."""
