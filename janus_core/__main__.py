"""python -m janus_core, or python followed by the path of this folder."""

import sys
from pathlib import Path

if not __package__:  # started by the folder's path, which Python puts in front of its modules' search path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

try:
    from janus_core.cli import main

    status = main()
except KeyboardInterrupt:  # while importing, which takes seconds
    print("cancelled", file=sys.stderr)
    status = 130
raise SystemExit(status)
