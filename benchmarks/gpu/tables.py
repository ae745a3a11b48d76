"""The Markdown of a run: one table per part, and how each goal was met."""

from .. import report

GOALS = (
    # (text, part, case, value, at least)
    ("1B: share of the floor", "ar-1b", "bf16, triton", "of_floor", 0.60),
    ("7B: share of the floor", "ar-7b", "bf16, triton", "of_floor", 0.75),
    ("flow: share of the floor", "flow-1b", "bf16, graph", "of_floor", 0.50),
)
RATIOS = (
    # (text, part, numerator case, denominator case, value, at least); a value of seconds is inverted by the order
    ("1B: times as fast as transformers", "ar-1b", "transformers", "bf16, triton", "s_per_token", 10),
    ("flow: times as fast as the original loop", "flow-1b", "original loop", "bf16, graph", "s_per_step", 3),
    ("batch 32: times the images per second", "batches-1b", "batch 32, triton", "batch 1, triton", "images_per_s", 16),
)  # fmt: skip
DECISIONS = (
    # (what is deleted unless it wins, part, slower case, faster case, value, gain)
    ("matrix-unit kernels, 16 rows", "batches-1b", "batch 8, graph", "batch 8, triton", "s_per_token", 1.10),
    ("matrix-unit kernels, 64 rows", "batches-1b", "batch 32, graph", "batch 32, triton", "s_per_token", 1.10),
    ("capture of the flow's step", "flow-1b", "bf16, plain", "bf16, graph", "s_per_step", 1.05),
)


def document(results: dict[str, dict]) -> str:
    """The whole run.

    Args:
        results: the parts' files by name.
    """
    if not results:
        return "No part has run.\n"
    first = next(iter(results.values()))
    on_gpu = any("NVIDIA" in result["hardware"] for result in results.values())
    lines = [report.header(first), ""]
    lines += [] if on_gpu else ["**Not measured on a GPU**: a rehearsal on small models, whose times mean nothing.", ""]
    for result in results.values():
        lines += [f"## {result['title']} (`{result['part']}`)", ""]
        lines += [] if result["done"] else ["The part did not finish; the same command continues it.", ""]
        lines += [*table(result["cases"]), ""]
    goals = [*goal_rows(results)]
    if goals:
        lines += ["## Goals", "", "| goal | wanted | measured |", "|---|---|---|", *goals, ""]
    return "\n".join(lines)


def table(cases: dict[str, dict]) -> list[str]:
    """Rows of cases; columns are the values that any of them has, and a last one for what did not run."""
    columns = list(dict.fromkeys(key for case in cases.values() for key in case if key not in ("not_run", "failed")))
    rows = ["| case | " + " | ".join([*columns, "note"]) + " |", "|---" * (len(columns) + 2) + "|"]
    for name, case in cases.items():
        note = "; ".join(f"{key.replace('_', ' ')}: {case[key]}" for key in ("not_run", "failed") if key in case)
        cells = [cell(case.get(column)) for column in columns] + [cell(note)]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return rows


def cell(value) -> str:
    if value is None:
        return ""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.replace("|", "/").split())


def goal_rows(results: dict[str, dict]):
    """A row for each goal and decision whose cases were measured."""

    def value(part, case, key):
        return results.get(part, {}).get("cases", {}).get(case, {}).get(key)

    for text, part, case, key, wanted in GOALS:
        if (measured := value(part, case, key)) is not None:
            yield f"| {text} | >= {wanted:.0%} | {measured:.0%} |"
    for text, part, above, below, key, wanted in (*RATIOS, *DECISIONS):
        a, b = value(part, above, key), value(part, below, key)
        if a and b:
            yield f"| {text} | >= {wanted} | {a / b:.2f} |"
