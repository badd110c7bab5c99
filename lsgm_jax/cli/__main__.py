"""`python -m lsgm_jax.cli` is `lsgm`."""

import sys

from lsgm_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
