"""Work on decoded pixels: transparency, colour, size."""
