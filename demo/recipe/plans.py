"""Plans of scenes in the forms of janus_core/finetunes/think.py."""

from .scenes import RADII, SIZE, Scene, place_at
from .words import with_article


def _reasongen(scene: Scene) -> str:
    if scene.relation:
        return " " + f" {scene.relation} ".join(with_article(f"{o.size} {o.name}") for o in scene.objects) + _on(scene)
    return " " + ", ".join(with_article(f"{o.size} {o.name}") + f" {scene.place}" for o in scene.objects) + _on(scene)


def _on(scene):
    return f" on {with_article(scene.background)} background."


def _t2i(scene: Scene) -> str:
    lines = [f"{o.size} {o.name} {place_at(o.x, o.y)}" for o in scene.objects]
    return " " + ", ".join([*lines, f"{scene.background} background"]) + "."


def _got(scene: Scene) -> str:
    parts = []
    for o in scene.objects:
        corners = [round(1000 * (centre + sign * RADII[o.size]) / SIZE) for sign in (-1, 1) for centre in (o.x, o.y)]
        box = "({},{}),({},{})".format(*corners)
        parts.append(f"<|obj_start|>{o.size} {o.name}<|obj_end|> <|box_start|>{box}<|box_end|>")
    return " " + " ".join([*parts, f"{scene.background} background"])


PLANS = {"reasongen-r1": _reasongen, "t2i-r1": _t2i, "got-r1": _got}  # by the recipe's name, see finetunes/think.py


def plan_of(scene: Scene, recipe: str) -> str:
    """The plan of a scene in a recipe's form: all of it, also what the prompt leaves out."""
    return PLANS[recipe](scene)
