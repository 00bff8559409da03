"""`python -m agent` is the command `prewarm`."""

from agent.cli import run

run()
