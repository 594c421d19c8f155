"""Networks at work on tiles."""
