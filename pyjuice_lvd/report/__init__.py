"""A run for people: figures, pictures of images, and one HTML page."""
