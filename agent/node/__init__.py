"""This node's readiness, its one publisher, and the local API."""
