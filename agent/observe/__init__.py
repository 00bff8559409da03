"""Metric catalogue, cold-start phases, HTTP endpoints."""
