"""prewarm: makes a node ready before the traffic."""
