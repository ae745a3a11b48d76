"""Loss curves as a PNG image, plotted with Pillow."""

import math
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ..files import write_atomically

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 480, 360, 62, 12, 30, 40
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b")
Losses = dict[str, tuple[list[int], list[float]]]  # (steps, values) of each loss


def losses_of(log: list[dict]) -> Losses:
    """The losses of a training log. The alignment loss is a negative cosine: 1 is added, so that it is above 0."""
    losses = {}
    for entry in log:
        for name, value in entry.items():
            if name not in ("step", "seconds"):
                steps, values = losses.setdefault("alignment + 1" if name == "alignment" else name, ([], []))
                steps.append(entry["step"])
                values.append(value + 1 if name == "alignment" else value)
    return losses


def save_curve(log: list[dict], path: Path):
    """Writes the curves of one training log. Raises OutputError when the file cannot be written."""
    plot = plot_losses({"": losses_of(log)})
    write_atomically(path, lambda file: plot.save(file, format="PNG"))


def plot_losses(runs: dict[str, Losses]) -> Image.Image:
    """One panel per run, the losses over the steps on a logarithmic scale."""
    plot = Image.new("RGB", (WIDTH * max(1, len(runs)), HEIGHT), "white")
    for k, (title, losses) in enumerate(runs.items()):
        plot.paste(_panel(title, losses), (k * WIDTH, 0))
    return plot


def _panel(title: str, losses: Losses) -> Image.Image:
    panel = Image.new("RGB", (WIDTH, HEIGHT), "white")
    canvas, font = ImageDraw.Draw(panel), ImageFont.load_default(11)
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    values = [max(value, 1e-6) for _, all_values in losses.values() for value in all_values] or [1.0]
    low, high = math.log10(min(values)), math.log10(max(values))
    low, high = (low - 0.05, high + 0.05) if high - low < 0.1 else (low, high)
    last = max((steps[-1] for steps, _ in losses.values()), default=1)

    def place(step, value):
        y = (math.log10(max(value, 1e-6)) - low) / (high - low)
        return LEFT + step / last * (right - LEFT), bottom - y * (bottom - TOP)

    for fraction in (0, 0.25, 0.5, 0.75, 1):
        value = 10 ** (low + fraction * (high - low))
        x, y = place(fraction * last, value)
        canvas.line((LEFT, y, right, y), "#dddddd")
        canvas.text((LEFT - 6, y), f"{value:.3g}", "black", font, anchor="rm")
        canvas.text((x, bottom + 6), f"{fraction * last:.0f}", "black", font, anchor="mt")
    canvas.rectangle((LEFT, TOP, right, bottom), outline="black")
    canvas.text(((LEFT + right) / 2, HEIGHT - 6), "step", "black", font, anchor="mb")
    canvas.text((WIDTH / 2, 8), title, "black", font, anchor="mt")
    for k, (name, (steps, values)) in enumerate(losses.items()):
        colour, points = COLOURS[k % len(COLOURS)], [place(*point) for point in zip(steps, values)]
        if len(points) > 1:
            canvas.line(points, colour, 2)
        else:
            canvas.ellipse((points[0][0] - 2, points[0][1] - 2, points[0][0] + 2, points[0][1] + 2), colour)
        canvas.text((right - 8, TOP + 8 + 14 * k), name, colour, font, anchor="rt")
    return panel
