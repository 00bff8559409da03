"""Advice for operators, read-only: what in a cluster keeps prewarm from doing its work, and how to mend it."""
