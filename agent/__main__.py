"""`python -m agent` is the command `prewarm`."""

import sys

from agent.cli import main

sys.exit(main())
