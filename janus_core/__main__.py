"""python -m janus_core."""

import sys

try:
    from .cli import main

    status = main()
except KeyboardInterrupt:  # while importing, which takes seconds
    print("cancelled", file=sys.stderr)
    status = 130
raise SystemExit(status)
