"""A procedural sample data set: models of cars and chairs, their rendering and annotations."""
