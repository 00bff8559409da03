"""Values and small tools that every other package may import; imports nothing of prewarm."""
