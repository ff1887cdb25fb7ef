"""The machine a program runs on: devices, processes, memory, disk, console and arguments."""
