"""The text of the templates' notes, and the height that a note needs."""

import re

DEMO = (
    "This runs at once on the pack's small **demo models**, which know one or two circles, squares, triangles and "
    "crosses in eight colours."
)
HUB = "https://huggingface.co"
PRO_LINK = f"[Janus-Pro-1B]({HUB}/deepseek-ai/Janus-Pro-1B)"
FLOW_LINK = f"[JanusFlow-1.3B]({HUB}/deepseek-ai/JanusFlow-1.3B)"
PRO_COMMAND = "`python -m janus_core download janus-pro-1b`"
FLOW_COMMAND = "`python -m janus_core download janusflow-1.3b --vae`"
WHERE = "in the pack's folder, with ComfyUI's Python, and press **R**"


def official(pro: bool, flow: bool) -> str:
    """How to use the official weights of the families that a template loads."""
    if pro and flow:
        return (
            f"For the **official weights** of {PRO_LINK} and {FLOW_LINK}, run {PRO_COMMAND} and {FLOW_COMMAND} "
            f"{WHERE}; then select them and `sdxl_vae` in the loaders and set the size to 384x384."
        )
    if pro:
        return (
            f"For the **official weights** of {PRO_LINK}, run {PRO_COMMAND} {WHERE}; then select the model in "
            "**Load Janus-Pro** and set the size to 384x384."
        )
    return (
        f"For the **official weights** of {FLOW_LINK}, run {FLOW_COMMAND} {WHERE}; then select the model in "
        "**Load JanusFlow** and `sdxl_vae` in **Load VAE**, and set the size to 384x384."
    )


# Of ComfyUI's Markdown notes at the default font size, the larger of both renderers:
CHARACTER = 5.3  # width of a mean character
LINE = 16  # height of a line
HEADING = 38
PARAGRAPH = 10  # space below a paragraph
BORDER = 10


def note_height(text: str, width: float) -> int:
    """The height in which a note shows all of a Markdown text of headings and paragraphs."""
    height = 2 * BORDER
    for block in text.split("\n\n"):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", block).replace("*", "").replace("`", "")
        if block.startswith("#"):
            height += HEADING
        else:
            height += _lines(shown, (width - 2 * BORDER) / CHARACTER) * LINE + PARAGRAPH
    return height


def _lines(text: str, characters: float) -> int:
    """The number of lines that words wrap to."""
    lines, used = 1, 0
    for word in text.split():
        if used and used + 1 + len(word) > characters:
            lines, used = lines + 1, len(word)
        else:
            used += len(word) + (1 if used else 0)
    return lines
