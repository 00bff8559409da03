"""The node's decisions: what to warm next and why. Pure."""
