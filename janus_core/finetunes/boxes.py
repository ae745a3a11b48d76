"""The boxes that GoT-R1 plans."""

import re

BOX_TOKENS = ("<|box_start|>", "<|box_end|>", "<|obj_start|>", "<|obj_end|>")
BOX_UNITS = 1000  # corners are whole numbers from 0 to this, whatever the image's size
OBJECT = re.compile(r"<\|obj_start\|>(.*?)<\|obj_end\|>|<\|box_start\|>(.*?)<\|box_end\|>", re.DOTALL)
NUMBER = r"\s*(\d{1,9})\s*"
CORNERS = re.compile(rf"\({NUMBER},{NUMBER}\)\s*,\s*\({NUMBER},{NUMBER}\)")


def boxes_of(thought: str, size: int) -> list[dict]:
    """The boxes in a thought of GoT-R1; what does not have their form is passed over.

    Args:
        size: width and height of the image, in pixels.

    Returns:
        [{"x", "y", "width", "height" in pixels, "label" of the object before it, "score": 1.0}].
    """
    boxes, label = [], ""
    for found in OBJECT.finditer(thought):
        name, corners = found.groups()
        if name is not None:
            label = name.strip()
            continue
        for numbers in CORNERS.findall(corners):
            x1, y1, x2, y2 = (min(int(n), BOX_UNITS) * size / BOX_UNITS for n in numbers)
            left, top = min(x1, x2), min(y1, y2)
            box = {"x": left, "y": top, "width": abs(x2 - x1), "height": abs(y2 - y1)}
            boxes.append({**box, "label": label, "score": 1.0})
    return boxes
