"""``python -m jqz.cli``: the command where no script is installed."""

import sys

from jqz.cli import main

if __name__ == "__main__":
    sys.exit(main())
