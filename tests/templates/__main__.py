"""Writes workflows/, subgraphs/ and the templates' API form; `thumbnails` makes the images of the templates."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from workflow_files import ROOT, SNAPSHOT, TWINS, read, to_api  # noqa: E402

from .blueprints import blueprints  # noqa: E402
from .catalogue import templates  # noqa: E402


def write(path: Path, value, indent=None):
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def build():
    """Writes every template and blueprint."""
    schema = read(SNAPSHOT)
    for template in templates(schema):
        workflow = template.workflow()
        write(ROOT / "workflows" / f"{template.name}.json", workflow, 1)
        write(TWINS / f"{template.name}.json", to_api(workflow, schema), 1)
    for name, blueprint in blueprints(schema):
        write(ROOT / "subgraphs" / f"{name}.json", blueprint, 1)


parser = argparse.ArgumentParser(prog="python -m tests.templates", description=__doc__)
parser.add_argument("what", nargs="?", choices=["build", "thumbnails"], default="build")
parser.add_argument("names", nargs="*", help="of the templates whose thumbnails are made; all without any")
arguments = parser.parse_args()
if arguments.what == "build":
    build()
else:
    from .thumbnails import make

    make(arguments.names)
