"""`python -m ditcast_client` is the `ditcast` command."""

import sys

from ditcast_client.cli import main

if __name__ == "__main__":
    sys.exit(main())
