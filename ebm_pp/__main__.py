"""`python -m ebm_pp` is `ebm-pp`."""

import sys

from ebm_pp.cli import main

if __name__ == "__main__":
    sys.exit(main())
