"""The demos' bars: a pipeline that is always right reaches all of them, one that is always wrong none."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from demo.recipe import bars, task_bars
from demo.recipe.scenes import COLOURS, SHAPES, Scene, SceneObject, render

COUNT = 6


class Oracle:
    """Stands in for a pipeline of either family. It knows what each text was written for.

    Args:
        right: whether it does what it is asked.
    """

    def __init__(self, monkeypatch, right: bool):
        self.right, self.meant, self.last = right, {}, None
        self.record(monkeypatch, bars, "caption", lambda args, found: {found.text: args[0]})
        self.record(monkeypatch, bars, "mixed_scene", lambda args, found: {"last": found})
        self.record(monkeypatch, bars.questions, "questions", lambda args, found: dict(found))
        self.record(monkeypatch, task_bars, "edit_of", lambda args, found: {found.instruction: found.target})
        self.record(monkeypatch, task_bars, "check_of", lambda args, found: {found.prompt.text: found.matches})

    def record(self, monkeypatch, module, name, entries):
        function = getattr(module, name)

        def counted(*args, **kwargs):
            found = function(*args, **kwargs)
            self.meant |= entries(args, found)
            return found

        monkeypatch.setattr(module, name, counted)

    def image(self, scene: Scene):
        return render(scene if self.right else Scene((), "white" if scene.background != "white" else "black"))

    def __call__(self, text, seed=None, seeds=(), negative_prompt="", **_):
        if isinstance(text, list):
            return [image for one, seed in zip(text, seeds) for image in self(one, seed)]
        if text in self.meant:
            scene = self.meant[text]
        elif text in bars.BARE:
            _, colour, shape = text.split()
            free = [name for name in COLOURS if name != colour]
            scene = Scene((SceneObject(shape, colour, "large", 64, 64),), free[seed % len(free)])
        else:
            scene = changed(self.meant["last"], text) if negative_prompt else self.meant["last"]
        return [self.image(scene)]

    def encode(self, image):
        return image

    def generate_latents(self, text, latents, denoise, **_):
        return latents if denoise < 0.5 and self.right else self(text, 0)[0]

    def decode(self, latents):
        return [latents]

    def describe(self, image, question, **_):
        return [f" {self.meant[question].title()}." if self.right else "perhaps"]

    def edit(self, image, instruction, seed):
        return [self.image(self.meant[instruction])]

    def reflect(self, image, prompt, temperature):
        return SimpleNamespace(matches=self.meant[prompt] == self.right)

    def think(self, text, recipe, seed):
        return SimpleNamespace(prompt=text)


def changed(scene: Scene, text: str) -> Scene:
    """The scene with another value of the attribute that the text leaves out."""
    (one,) = scene.objects
    free = [name for name in COLOURS if name not in (one.colour, scene.background)]
    if "background" not in text:
        return replace(scene, background=free[0])
    if one.colour not in text.split():
        return replace(scene, objects=(replace(one, colour=free[0]),))
    return replace(scene, objects=(replace(one, shape=next(name for name in SHAPES if name != one.shape)),))


MEASURES = {
    "phrasings": lambda pipe: bars.phrasings("AR", pipe, COUNT),
    "variety": lambda pipe: bars.variety("AR", pipe),
    "negatives": lambda pipe: bars.negatives("AR", pipe, COUNT),
    "guidance": lambda pipe: bars.flow_guidance(pipe, COUNT),
    "image to image": lambda pipe: bars.image_to_image(pipe, COUNT),
    "answers": lambda pipe: bars.answers("AR", pipe, COUNT),
    "edits": lambda pipe: task_bars.edits(pipe, COUNT),
    "checks": lambda pipe: task_bars.checks(pipe, COUNT),
}


@pytest.mark.parametrize("measure", MEASURES)
def test_a_measure_tells_right_from_wrong(measure, monkeypatch):
    found = MEASURES[measure](Oracle(monkeypatch, True))
    assert found and all(one.passed and (one.measured == 100 or "number" in one.name) for one in found)
    monkeypatch.undo()
    assert not any(one.passed for one in MEASURES[measure](Oracle(monkeypatch, False)))


def test_plans_are_compared_with_images_without_one(monkeypatch):
    found = task_bars.plans(Oracle(monkeypatch, True), COUNT)
    assert [(one.measured, one.bar) for one in found] == [(100, 100)] * 3
    pipe = Oracle(monkeypatch, True)
    pipe.think = lambda text, recipe, seed: SimpleNamespace(prompt="a red circle")
    assert not any(one.passed for one in task_bars.plans(pipe, COUNT))
