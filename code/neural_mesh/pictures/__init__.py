"""Pictures and films of poses."""
