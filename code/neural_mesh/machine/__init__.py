"""The machine: processes, devices, memory, disk, and the console."""
