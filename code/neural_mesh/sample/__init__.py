"""The sample data: procedural models and their drawing."""
