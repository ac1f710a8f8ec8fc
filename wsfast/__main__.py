"""``python -m wsfast`` is the ``wsfast`` command."""

import sys

from .cli import main

sys.exit(main())
