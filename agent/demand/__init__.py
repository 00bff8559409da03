"""Annotations -> endpoints -> windows. Pure: no clock, no I/O."""
