"""Plots the losses of training runs: `python -m demo.recipe.curves out demo/curves.png`.

Every log.jsonl under the folder is a stage; the stages of one model share a panel.
"""

import argparse
import json
from pathlib import Path

from janus_core.training.curves import losses_of, plot_losses


def read_runs(folder: Path) -> dict[str, dict[str, tuple[list, list]]]:
    """{run: {loss: (steps, values)}}, the steps of a run's stages one after another."""
    runs = {}
    for path in sorted(folder.glob("*/*/log.jsonl")):
        log = runs.setdefault(path.parent.parent.name, [])
        before = log[-1]["step"] if log else 0
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            log.append({**entry, "step": entry["step"] + before})
    return {run: losses_of(log) for run, log in runs.items()}


def main():
    parser = argparse.ArgumentParser(prog="python -m demo.recipe.curves", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("image", type=Path)
    args = parser.parse_args()
    plot_losses(read_runs(args.folder)).save(args.image)


if __name__ == "__main__":
    main()
