"""Plots the losses of training runs: `python -m demo.recipe.curves out demo/curves.png` (needs matplotlib).

Every log.jsonl under the folder is a stage; the stages of one model share a panel.
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def read_runs(folder: Path) -> dict[str, dict[str, tuple[list, list]]]:
    """{run: {loss: (steps, values)}}, the steps of a run's stages one after another."""
    runs = {}
    for path in sorted(folder.glob("*/*/log.jsonl")):
        losses = runs.setdefault(path.parent.parent.name, {})
        before = max((steps[-1] for steps, _ in losses.values()), default=0)
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            step = entry.pop("step") + before
            entry.pop("seconds")
            for name, value in entry.items():
                steps, values = losses.setdefault(name, ([], []))
                steps.append(step)
                values.append(value)
    return runs


def main():
    parser = argparse.ArgumentParser(prog="python -m demo.recipe.curves", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("image", type=Path)
    args = parser.parse_args()
    runs = read_runs(args.folder)
    figure, panels = plt.subplots(1, len(runs), figsize=(4 * len(runs), 3), squeeze=False)
    for panel, (run, losses) in zip(panels[0], runs.items()):
        for name, (steps, values) in losses.items():
            panel.plot(steps, [value + 1 if name == "alignment" else value for value in values], label=name)
        panel.set(title=run, xlabel="step", yscale="log")
        panel.legend(fontsize=7)
    panels[0][0].set_ylabel("loss (alignment: + 1)")
    figure.tight_layout()
    figure.savefig(args.image, dpi=80)


if __name__ == "__main__":
    main()
