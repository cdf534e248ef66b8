"""``python -m agentd``, and the entry point of the frozen binary."""

import sys

from agentd.cli import main

if __name__ == "__main__":
    sys.exit(main())
