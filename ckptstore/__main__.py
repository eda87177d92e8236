"""``python -m ckptstore``: the same as the ``ckptstore`` command."""

from __future__ import annotations

import sys

from ckptstore.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
