"""Positions of a template's nodes, groups and note: columns from left to right, groups stacked in them.

A group covers neighbouring columns. It stands on what the groups before it left free in these columns, and so does the
note. All lengths are canvas units.
"""

from dataclasses import dataclass, field

from .notes import note_height

MAX_WIDTH, MAX_HEIGHT = 1850, 1000
TITLE = 30  # of a node, above its position
GROUP_TITLE = 40
PADDING = 10  # between a group's border and its nodes
ROW_GAP = 14
GROUP_GAP = 20
COLUMN_GAPS = (30, 60)  # between the nodes of two columns: the least, and what is enough

# Smallest width and height of nodes, the larger of both of ComfyUI's renderers, or more where content needs it.
SIZES = {
    "CLIPTextEncode": (240, 110),
    "CheckpointLoaderSimple": (225, 130),
    "ConditioningCombine": (225, 54),
    "EmptyImage": (225, 138),
    "EmptyLatentImage": (225, 118),
    "ImageCompositeMasked": (225, 166),
    "ImageGrid": (225, 142),
    "ImageScaleBy": (225, 90),
    "JanusDescribeImage": (240, 306),
    "JanusFlowLoader": (225, 130),
    "JanusFlowSampler": (225, 274),
    "JanusFlowScheduler": (225, 114),
    "JanusProLoader": (225, 150),
    "JanusPromptEncode": (240, 240),
    "JanusTokenSampler": (225, 322),
    "KSampler": (225, 274),
    "KSamplerSelect": (225, 62),
    "LatentUpscaleBy": (225, 90),
    "LoraLoaderModelOnly": (225, 90),
    "MaskComposite": (225, 138),
    "PreviewAny": (225, 150),
    "PrimitiveStringMultiline": (225, 120),
    "RebatchImages": (225, 62),
    "SamplerCustom": (225, 242),
    "SaveImage": (225, 330),
    "SaveImageTextDataSetToFolder": (225, 166),
    "SetLatentNoiseMask": (225, 54),
    "SolidMask": (225, 118),
    "VAEDecode": (225, 54),
    "VAEEncode": (225, 54),
    "VAELoader": (225, 62),
}


@dataclass
class Box:
    """A rectangle: x and y of its left upper corner, width, height."""

    x: float = 0
    y: float = 0
    width: float = 0
    height: float = 0

    @property
    def right(self):
        return self.x + self.width

    @property
    def bottom(self):
        return self.y + self.height

    def overlaps(self, other: "Box") -> bool:
        return self.x < other.right and other.x < self.right and self.y < other.bottom and other.y < self.bottom


@dataclass
class Placed:
    """What the layout places: a group with its `nodes`, each a (node, column), or a note with its `text`."""

    columns: tuple[int, int]  # first and last
    title: str = ""
    nodes: list = field(default_factory=list)
    text: str = ""
    box: Box = field(default_factory=Box)


def arrange(placed: list[Placed]):
    """Sets the boxes of all nodes, groups and the note.

    Before, the y of a node's box is the space above it, and that of a group's or note's box its smallest y.

    Raises:
        ValueError: the columns are too wide, or a column is too high.
    """
    columns = range(1 + max(item.columns[1] for item in placed))
    widths = [max((n.box.width for item in placed for n, at in item.nodes if at == c), default=0) for c in columns]
    free = MAX_WIDTH - 2 * PADDING - sum(widths)
    gap = min(COLUMN_GAPS[1], free // max(1, len(widths) - 1))
    if gap < COLUMN_GAPS[0]:
        raise ValueError(f"{len(widths)} columns of {sum(widths)} are too wide")
    lefts = [sum(widths[:c]) + c * gap for c in columns]
    skyline = [0] * len(widths)
    for item in placed:
        first, last = item.columns
        covered = range(first, last + 1)
        top = max(item.box.y, *(skyline[c] for c in covered))
        item.box = Box(lefts[first] - PADDING, top, lefts[last] + widths[last] - lefts[first] + 2 * PADDING)
        if item.text:
            item.box.y += TITLE
            item.box.height = note_height(item.text, item.box.width)
        else:
            item.box.height = _stack(item, lefts, widths, top)
        for c in covered:
            skyline[c] = item.box.bottom + GROUP_GAP
    height = max(item.box.bottom for item in placed)
    if height > MAX_HEIGHT:
        bottoms = ", ".join(f"{item.title or 'note'} {item.box.bottom:.0f}" for item in placed)
        raise ValueError(f"a height of {height:.0f} is too much ({bottoms})")


def _stack(group: Placed, lefts, widths, top) -> float:
    """Places a group's nodes in their columns and returns the group's height."""
    bottoms = {}
    for node, column in group.nodes:
        box = node.box
        box.x, box.y = lefts[column], bottoms.get(column, top + GROUP_TITLE) + TITLE + box.y
        box.width = widths[column]
        bottoms[column] = box.bottom + ROW_GAP
    return max(bottoms.values()) - ROW_GAP + PADDING - top
