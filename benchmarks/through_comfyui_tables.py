"""Markdown of the results of benchmarks/through_comfyui.py."""

import statistics

from . import report
from .workload import PARTS, TITLES

FAMILIES = {"ar": "Janus-Pro", "flow": "JanusFlow"}


def tables(result: dict) -> str:
    """All tables; absolute times on a GPU only, since a CPU's depend on its other load."""
    absolute = result["device"] != "cpu"
    text = (
        f"{report.header(result)}\n\n"
        f"Size {result['size']}, synthetic weights in bf16 files. Times are ComfyUI's divided by janus_core's, medians "
        f"of {result['runs']} runs in turns, with the least and the greatest. "
        "janus_core computes in the dtype of the second column. A LoRA is in ComfyUI alone; janus_core has the same "
        "weights without it. Private memory (RssAnon, after the runs) is that of the whole process, as a multiple of "
        "the weights' bytes in the second column's dtype.\n"
    )
    for family, title in FAMILIES.items():
        rows = [row for row in result["rows"] if row["family"] == family]
        timed = [row for row in rows if row.get("parts")]
        if timed:
            text += f"\n## {title}\n\n" + _table(*_parts_table(timed, family, absolute))
        loaded = [row for row in rows if row["weights"] == "default" and row.get("load", {}).get("core")]
        if loaded:
            text += (
                f"\n### {title}: loading, and the first prompt pass and decoding\n\n"
                "Peaks are of ComfyUI's process. The first counts the pages of mapped files that were in memory, which "
                "Linux can drop; the second is private memory alone. The weights' file was in the page cache.\n\n"
            )
            text += _table(*_loading_table(loaded, absolute))
    failed = [row for row in result["rows"] if "error" in row]
    if failed:
        text += "\n## Failed\n\n" + "".join(f"- {_name(row)}: {_one_line(row['error'])}\n" for row in failed)
    return text


def summary(row: dict) -> str:
    """One line about a row, for the terminal."""
    ratios = [f"{TITLES[part][row['family']]} {ratio(times)}" for part, times in row.get("parts", {}).items()]
    if "error" in row:
        ratios.append(f"failed: {_one_line(row['error'])}")
    return f"{_name(row)}: {', '.join(ratios) or 'loaded'}"


def ratio(times: dict[str, list[float]]) -> str:
    """The median of ComfyUI's time over janus_core's, with the least and the greatest; "" if one was not timed."""
    ratios = [host / core for host, core in zip(times.get("comfyui", ()), times.get("core", ()))]
    if not ratios:
        return ""
    spread = f" ({min(ratios):.2f} to {max(ratios):.2f})" if len(ratios) > 1 else ""
    return f"{statistics.median(ratios):.2f}{spread}"


def _parts_table(rows, family: str, absolute: bool):
    parts = [part for part in PARTS if any(part in row["parts"] for row in rows)]
    titles = ["weight_dtype", "computes in", *(TITLES[part][family] for part in parts)]
    titles += ["private memory", "janus_core's"]
    cells = []
    for row in rows:
        line = [row["weights"], row["dtype"]]
        for part in parts:
            times = row["parts"].get(part, {})
            milliseconds = f"{1000 * statistics.median(times['comfyui']):.2f} ms, " if absolute and times else ""
            line.append(milliseconds + ratio(times))
        cells.append([*line, _private(row, "comfyui"), _private(row, "core")])
    return titles, cells


def _loading_table(rows, absolute: bool):
    unit = "seconds, ratio" if absolute else "ratio"
    titles = ["file", f"loading, {unit}", f"with the first run, {unit}", "file, GB", "peak, GB", "of it private, GB"]
    titles += ["1.2 files + 1 GB"]
    cells = []
    for row in rows:
        first = {name: row["load"][name] + sum(_first(row, name)) for name in ("comfyui", "core")}
        line = [row["layout"]]
        for times in (row["load"], first if all(row["first"].values()) else None):
            seconds = f"{times['comfyui']:.2f} s, " if absolute and times else ""
            line.append(f"{seconds}{times['comfyui'] / times['core']:.2f}" if times else "")
        memory = row["memory"]["comfyui"]
        at_peak = memory.get("first") or memory["loaded"]
        peak = at_peak and at_peak["peak"]
        goal = 1.2 * row["file_bytes"] + 1e9
        cells.append(line + [_gb(n) for n in (row["file_bytes"], peak, memory["private_peak"], goal)])
    return titles, cells


def _first(row, name: str) -> list[float]:
    """Seconds of the first prompt pass and the first decoding."""
    return [seconds for part, seconds in row["first"][name].items() if part in ("prompt", "decode")]


def _private(row, name: str) -> str:
    memory = row["memory"][name].get("end")
    return f"{memory['private'] / row['weight_bytes']:.2f}" if memory else ""


def _gb(count: float | None) -> str:
    return "" if count is None else f"{count / 1e9:.2f}"


def _name(row) -> str:
    return f"{FAMILIES[row['family']]}, {row['weights']}, {row['layout']}"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:600]


def _table(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
