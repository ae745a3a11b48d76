"""python -m demo.recipe CONFIG: trains one part of the demo checkpoints (see demo/README.md)."""

import argparse
import sys

from janus_core.cli import set_argument
from janus_core.errors import JanusError

from . import run


def main(argv=None) -> int:
    """Runs the command line; a JanusError becomes one line on stderr and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m demo.recipe", description="Train a part of the demo checkpoints.")
    parser.add_argument("config", help="JSON file, one of demo/recipe/configs")
    parser.add_argument("--folder", help="folder of the run, which is resumed from there; the config's by default")
    set_argument(parser)
    args = parser.parse_args(argv)
    try:
        print(run(args.config, args.folder, dict(args.set)))
    except (JanusError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
