"""The tables of the help pages: each input's type, default and range are those of the node's schema.

`python tests/help_tables.py` writes them into web/docs from the schema snapshot.
"""

import re
from pathlib import Path

from workflow_files import FILES, ROOT, SNAPSHOT, inputs_of, is_combo, options_of, read

DOCS = ROOT / "web" / "docs"
NODES = {name: info for name, info in read(SNAPSHOT).items() if name.startswith("Janus")}
LANGUAGES = ("en", "zh")
WORDS = {
    "en": {
        "INT": "whole number",
        "FLOAT": "number",
        "STRING": "text",
        "BOOLEAN": "on or off",
        "COMBO": "choice",
        True: "on",
        False: "off",
        "": "empty",
        "to": "{} to {}",
        "long": "as on the node",
        "titles": ("input", "type", "default", "range", "what it is"),
        "output titles": ("output", "type", "what it is"),
    },
    "zh": {
        "INT": "整数",
        "FLOAT": "数值",
        "STRING": "文本",
        "BOOLEAN": "开关",
        "COMBO": "选项",
        True: "开",
        False: "关",
        "": "空",
        "to": "{} 至 {}",
        "long": "见节点",
        "titles": ("输入", "类型", "默认", "范围", "说明"),
        "output titles": ("输出", "类型", "说明"),
    },
}
LONG = 40  # characters of a default text that is not shown
NONE = "–"


def page(node: str, language: str) -> Path:
    """The help page: ComfyUI asks for NODE/LANGUAGE.md first, then for NODE.md."""
    return DOCS / f"{node}.md" if language == "en" else DOCS / node / f"{language}.md"


def number(value) -> str:
    if value == 2**64 - 1:
        return "2^64 - 1"
    return f"{value:g}" if isinstance(value, float) else str(value)


def cells(name: str, spec: list, language: str) -> list[str]:
    """Type, default and range of an input, as the table shows them."""
    words, options = WORDS[language], spec[1] if len(spec) > 1 else {}
    kind = "COMBO" if is_combo(spec) else spec[0]
    default = options.get("default")
    if kind == "COMBO":
        choices = [] if name in FILES else options_of(spec)
        default = default if default is not None else next(iter(choices), None)
        return [
            words[kind],
            f"`{default}`" if choices else NONE,
            ", ".join(f"`{c}`" for c in choices).replace("|", "\\|") or NONE,
        ]
    between = NONE
    if "min" in options and "max" in options:
        between = words["to"].format(number(options["min"]), number(options["max"]))
    if default is None:
        shown = NONE
    elif isinstance(default, bool) or default == "":
        shown = words[default]
    elif isinstance(default, str):
        shown = default if len(default) <= LONG else words["long"]
    else:
        shown = number(default)
    return [words.get(kind, kind), shown, between]


def written(text: str, node: str, language: str) -> str:
    """A page's text with the columns of its tables as the schema says."""
    info, words, lines = NODES[node], WORDS[language], []
    inputs = inputs_of(info)
    outputs = dict(zip(info["output_name"], info["output"]))
    titles = None
    for line in text.split("\n"):
        row = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] if line.startswith("|") else None
        if row and row[0] in (words["titles"][0], words["output titles"][0]):
            titles = words["titles" if row[0] == words["titles"][0] else "output titles"]
            line = f"| {' | '.join(titles)} |"
        elif row and titles and set(row[0]) == {"-"}:
            line = f"|{' --- |' * len(titles)}"
        elif row and titles:
            name = row[0].split("`")[1]
            known = inputs if titles is words["titles"] else outputs
            if name in known:
                kind = (
                    cells(name, inputs[name], language)
                    if known is inputs
                    else [words.get(outputs[name], outputs[name])]
                )
                line = f"| {' | '.join([row[0], *kind, row[-1]])} |"
        else:
            titles = None
        lines.append(line)
    return "\n".join(lines)


def main():
    for node in NODES:
        for language in LANGUAGES:
            path = page(node, language)
            path.write_text(written(path.read_text(encoding="utf-8"), node, language), encoding="utf-8")


if __name__ == "__main__":
    main()
