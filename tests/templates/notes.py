"""The text of the templates' notes, and the height that a note needs."""

import re

DEMO = (
    "This runs at once on the pack's small **demo models**, which know one or two circles, squares, triangles and "
    "crosses in eight colours."
)
HUB = "https://huggingface.co"
PRO_LINK = f"[Janus-Pro-1B]({HUB}/deepseek-ai/Janus-Pro-1B)"
FLOW_LINK = f"[JanusFlow-1.3B]({HUB}/deepseek-ai/JanusFlow-1.3B)"
PRO_COMMAND = "python janus_core download janus-pro-1b"
FLOW_COMMAND = "python janus_core download janusflow-1.3b"


def download(models: str, *commands: str) -> str:
    """The paragraph and the code block that tell how to get the official weights of `models`."""
    text = f"For the **official weights** of {models}, run this in the pack's folder, with ComfyUI's Python:"
    return "\n".join((text, "", "```", *commands, "```"))


def official(pro: bool, flow: bool) -> str:
    """How to use the official weights of the families that a template loads."""
    size = "and set the size to **384x384**."
    if pro and flow:
        got = download(f"{PRO_LINK} and {FLOW_LINK}", PRO_COMMAND, f"{FLOW_COMMAND} --vae")
        return f"{got}\n\nThen press **R**, select them and **sdxl_vae** in the loaders {size}"
    if pro:
        return f"{download(PRO_LINK, PRO_COMMAND)}\n\nThen press **R**, select the model in **Load Janus-Pro** {size}"
    got = download(FLOW_LINK, f"{FLOW_COMMAND} --vae")
    return f"{got}\n\nThen press **R**, select the model in **Load JanusFlow**, **sdxl_vae** in **Load VAE**, {size}"


# Of ComfyUI's Markdown notes at the default font size, the larger of both renderers:
CHARACTER = 5.3  # width of a mean character
LINE = 16  # height of a line
HEADING = 38
PARAGRAPH = 10  # space below a paragraph
CODE = 54  # of a code block, besides its lines
BORDER = 10


def note_height(text: str, width: float) -> int:
    """The height in which a note shows all of a Markdown text of headings and paragraphs."""
    height = 2 * BORDER
    for block in text.split("\n\n"):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", block).replace("*", "").replace("`", "")
        if block.startswith("#"):
            height += HEADING
        elif block.startswith("```"):
            height += CODE + (block.count("\n") - 1) * LINE + PARAGRAPH
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
