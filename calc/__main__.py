"""`python -m calc` is `gpucalc`."""

import sys

from .cli import main

sys.exit(main())
