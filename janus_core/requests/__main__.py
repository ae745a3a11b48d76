"""python -m janus_core.requests CONFIG: runs the requests of a configuration."""

import argparse
import json
import sys
from pathlib import Path

from ..errors import JanusError
from ..files import check_output, write_text
from .config import inference_of, jsonable, read_config
from .runner import Runner


def main(argv: list[str] | None = None) -> int:
    """Runs the command; an expected error becomes one line on stderr and exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m janus_core.requests", description=__doc__)
    parser.add_argument("config", help="YAML or JSON file with TorchUMM's keys (docs/evaluation.md)")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="overrides a setting")
    parser.add_argument("--output-json", type=Path, help="write the results there as well")
    args = parser.parse_args(argv)
    try:
        cfg, requests, batch_size = inference_of(read_config(args.config, args.set))
        if args.output_json is not None:
            check_output(args.output_json)
        results = [jsonable(one) for one in Runner.load(cfg).run_many(requests, batch_size)]
        text = json.dumps(results, ensure_ascii=False, indent=1)
        if args.output_json is not None:
            write_text(args.output_json, text + "\n")
        print(text)
    except JanusError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
