"""Prompts for scenes: what they say, in many phrasings.

A caption is true for its scene, but says only a part of it; the model learns that the rest varies. Guidance compares a
prompt with the unconditional row or with a negative prompt, which is often one word. So some captions are fragments
("blue", "no squares", words that say nothing), and all of these are rows that a model has seen.
"""

import random
from dataclasses import dataclass, field, replace

from . import words
from .scenes import COLOURS, OPPOSITE, SHAPES, Scene
from .words import plural, with_article

COMPLETE = 0.25  # how often everything is said
NAMES = 0.15  # how often nothing but colours and shapes
LEFT_OUT = 0.3  # otherwise, how often an attribute is not said
STYLES = {"sentence": 0.78, "list": 0.1, "fragment": 0.12}
STYLES_TEST = {"sentence": 0.8, "list": 0.2}
JUNK = (
    "blurry",
    "ugly",
    "low quality",
    "bad",
    "noisy",
    "deformed",
    "watermark",
    "text",
    "worst quality",
    "artifacts",
)

SAMPLE_PROMPTS = (
    "a red circle on a blue background",
    "a large green triangle on a white background",
    "a small yellow cross on a black background",
    "a purple square on an orange background",
    "a white circle left of a black square on a red background",
    "a green cross above a yellow circle on a purple background",
    "a small blue triangle right of a large orange cross on a white background",
    "a red triangle on a green background",
)


@dataclass(frozen=True)
class Caption:
    """A prompt and what it says of its scene.

    Attributes:
        background, place: whether it says the background's colour, and the place or the relation.
        colours, shapes, sizes: whether it says these of each object.
        absent: shapes and colours that it says are not there.
        fragment: whether it names single attributes instead of an image.
    """

    text: str
    background: bool = False
    place: bool = False
    colours: tuple[bool, ...] = ()
    shapes: tuple[bool, ...] = ()
    sizes: tuple[bool, ...] = ()
    absent: tuple[str, ...] = field(default=())
    fragment: bool = False


def plain_caption(scene: Scene) -> str:
    """The description of a scene in one fixed form, with all sizes but without the place of a single object."""
    names = [with_article(f"{o.size} {o.name}") for o in scene.objects]
    text = f" {scene.relation} ".join(names) if names else "an empty image"
    return f"{text} on {with_article(scene.background)} background"


def meaning(scene: Scene, says: Caption) -> str:
    """What a caption says of its scene, in one fixed form, with "any" for what it leaves out."""
    names = [
        f"{o.size if size else 'any'} {o.colour if colour else 'any'} {o.shape if shape else 'shape'}"
        for o, size, colour, shape in zip(scene.objects, says.sizes, says.colours, says.shapes)
    ]
    background = scene.background if says.background else "any"
    absent = "".join(f", no {name}" for name in says.absent) if names else ""
    return f"{_arranged(scene, says, names)} on {background}{absent}"


def _arranged(scene, says, names):
    """The names with their place or relation; the left or upper object is first."""
    if not names:
        return "nothing"
    if len(names) == 1:
        return f"one {names[0]} {scene.place if says.place else 'anywhere'}"
    if not says.place:
        return " and ".join(sorted(names))
    relation = scene.relation
    if relation in ("right of", "below"):
        names, relation = names[::-1], OPPOSITE[relation]
    return f" {relation} ".join(names)


def caption(scene: Scene, rng: random.Random, test: bool = False, complete: float = COMPLETE) -> Caption:
    """A random prompt that is true for the scene.

    Args:
        test: with phrasings and filler words that are held out of training, and any capitals.
        complete: the share of prompts, fragments aside, that say everything.
    """
    styles = STYLES_TEST if test else STYLES
    (style,) = rng.choices(list(styles), list(styles.values()))
    writer = _Writer(scene, rng, test, complete)
    if style == "fragment":
        found = writer.fragment()
    elif not scene.objects:
        found = writer.empty()
    else:
        found = writer.listing() if style == "list" else writer.sentence()
    text = found.text
    if rng.random() < 0.12:
        text += rng.choice((".", ".", "!"))
    if test and rng.random() < 0.4:
        text = rng.choice((text.upper(), text.title(), text.capitalize()))
    return replace(found, text=text)


def whole_caption(scene: Scene, rng: random.Random, test: bool = False) -> Caption:
    """A random prompt, as of `caption`, that is no fragment."""
    while True:
        found = caption(scene, rng, test)
        if not found.fragment:
            return found


def bare_caption(scene: Scene, rng: random.Random) -> Caption:
    """A random prompt that names the objects by colour and shape, and says nothing else."""
    every, none = (True,) * len(scene.objects), (False,) * len(scene.objects)
    says = Caption("", colours=every, shapes=every, sizes=none)
    return replace(says, text=_Writer(scene, rng, False, COMPLETE).objects(says))


@dataclass(frozen=True)
class _Writer:
    scene: Scene
    rng: random.Random
    test: bool
    complete: float

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def pick(self, training, test=None):
        return self.rng.choice(test if self.test and test is not None else training)

    def colour(self, name: str) -> str:
        return self.pick(words.COLOUR_WORDS[name])

    def sentence(self) -> Caption:
        says = self.what_to_say()
        text = self.objects(says)
        if says.background:
            colour = self.colour(self.scene.background)
            text = self.pick(words.BACKGROUNDS, words.BACKGROUNDS_TEST).format(text, colour, with_article(colour))
        absent = ()
        if self.chance(0.1):
            text, absent = self.with_absent(text)
        if self.chance(0.6 if self.test else 0.45):
            text = self.pick(words.FRAMES, words.FRAMES_TEST).format(text)
        return replace(says, text=text, absent=absent)

    def what_to_say(self) -> Caption:
        """A caption without a text: everything, names alone, or each attribute or not."""
        count, kind = len(self.scene.objects), self.rng.random()
        if kind < self.complete:
            out = [False] * (2 + 2 * count)
        elif kind < self.complete + NAMES:
            out = [True, True, *[False] * count, *[True] * count]
        else:
            out = [self.chance(LEFT_OUT) for _ in range(2 + 2 * count)]
        background, place, *rest = (not left for left in out)
        colours, sizes = tuple(rest[:count]), tuple(rest[count:])
        shapes = tuple(not (said and self.chance(0.05)) for said in colours)
        return Caption("", background, place, colours, shapes, sizes)

    def objects(self, says: Caption) -> str:
        scene = self.scene
        if len(scene.objects) == 1:
            text = self.named(0, says)
            if says.place:
                place = self.pick(words.PLACE_WORDS[scene.place], words.PLACE_WORDS_TEST[scene.place])
                text = f"{place}, {text}" if self.chance(0.1) else f"{text} {place}"
            return text
        a, b = (self.named(k, says) for k in range(2))
        if self.same(says) and self.chance(0.6):
            return self.both(says)
        if not says.place:
            first, second = (b, a) if self.reverses else (a, b)
            return self.pick(("{} and {}", "{} and {}", "{} with {}", "{}, {}", "both {} and {}")).format(first, second)
        relation = self.pick(words.RELATION_WORDS[scene.relation], words.RELATION_WORDS_TEST[scene.relation])
        if self.chance(0.12):
            relation = self.pick(words.RELATION_WORDS[scene.relation])
            return f"{relation} {b} there is {a}" if self.chance(0.5) else f"{relation} {b} is {a}"
        return f"{a} {relation} {b}"

    @property
    def reverses(self) -> bool:
        """Whether the second object is the left or upper one, which is named first where no relation is said.

        In any order, a model cannot tell which object to begin with, and mixes their colours and shapes.
        """
        return self.scene.relation in ("right of", "below")

    def same(self, says: Caption) -> bool:
        """Whether what is said of both objects is the same."""
        said = [
            (o.colour if colour else None, o.shape if shape else None, o.size if size else None)
            for o, colour, shape, size in zip(self.scene.objects, says.colours, says.shapes, says.sizes)
        ]
        return said[0] == said[1]

    def both(self, says: Caption) -> str:
        """Two of a kind."""
        one = self.scene.objects[0]
        noun = plural(self.pick(words.SHAPE_WORDS[one.shape])) if says.shapes[0] else "shapes"
        parts = [self.pick(words.SIZE_WORDS[one.size])] if says.sizes[0] else []
        parts += [self.colour(one.colour)] if says.colours[0] else []
        text = " ".join([self.pick(("two", "two", "2", "a pair of")), *parts, noun])
        if not says.place:
            return text
        lie = words.ROWS if self.scene.relation in ("left of", "right of") else words.COLUMNS
        return f"{text} {self.pick(lie)}"

    def named(self, k: int, says: Caption) -> str:
        """An object with its article: what is said of it, in one of several orders."""
        o = self.scene.objects[k]
        noun = self.pick(words.SHAPE_WORDS[o.shape]) if says.shapes[k] else self.pick(("shape", "object", "figure"))
        size = self.pick(words.SIZE_WORDS[o.size]) if says.sizes[k] else ""
        colour = self.colour(o.colour) if says.colours[k] else ""
        before = [size, colour]
        if self.chance(0.08):
            before = [f"{colour}," if colour and size else colour, size]
        after = ""
        if colour and self.chance(0.1):
            before = [size]
            after = self.pick((" that is {}", " in {}", " coloured {}", " of {} colour", " with {} colour")).format(
                colour
            )
        filler = self.fillers(0.12)
        text = " ".join(part for part in (*filler, *before, noun) if part)
        if self.chance(0.08):
            return text + after
        return (f"one {text}" if self.chance(0.06) else with_article(text)) + after

    def fillers(self, share: float) -> list[str]:
        """Words that say nothing: real ones and invented ones."""
        if not self.chance(share):
            return []
        if not self.test and self.chance(0.3):
            letters = "abcdefghijklmnopqrstuvwxyz"
            return ["".join(self.rng.choice(letters) for _ in range(self.rng.randint(3, 8)))]
        return [self.pick(words.FILLERS, words.FILLERS_TEST) for _ in range(self.rng.choice((1, 1, 2)))]

    def listing(self) -> Caption:
        """Attributes separated by commas."""
        says = self.what_to_say()
        says = replace(says, shapes=(True,) * len(says.shapes))
        parts = []
        described = list(zip(self.scene.objects, says.colours, says.sizes))
        for o, coloured, sized in reversed(described) if self.reverses else described:
            names = [self.pick(words.SIZE_WORDS[o.size])] if sized else []
            names += [self.colour(o.colour)] if coloured else []
            names.append(self.pick(words.SHAPE_WORDS[o.shape]))
            split = len(self.scene.objects) == 1 and self.chance(0.2)
            parts += names[::-1] if split else [" ".join(names)]
        if len(self.scene.objects) == 1 and says.place:
            parts.append(self.pick(words.PLACE_WORDS[self.scene.place]))
        elif len(self.scene.objects) == 2:
            says = replace(says, place=False)
        if says.background:
            parts.append(f"{self.colour(self.scene.background)} {self.pick(('background', 'background', 'backdrop'))}")
        if len(self.scene.objects) == 1 and not self.chance(0.5):
            head, *rest = parts
            parts = [head, *self.rng.sample(rest, len(rest))]
        return replace(says, text=", ".join((*self.fillers(0.1), *parts)))

    def empty(self) -> Caption:
        colour = self.colour(self.scene.background)
        text = self.pick(words.EMPTY, words.EMPTY_TEST).format(colour)
        return Caption(text, background=True, absent=SHAPES)

    def with_absent(self, text: str) -> tuple[str, tuple[str, ...]]:
        """The text with a shape or a colour that is not there."""
        word, absent = self.absent()
        return self.pick(words.ABSENT, words.ABSENT_TEST).format(text, word), absent

    def absent(self) -> tuple[str, tuple[str, ...]]:
        scene = self.scene
        colours = {scene.background, *(o.colour for o in scene.objects)}
        shapes = {o.shape for o in scene.objects}
        name = self.rng.choice([s for s in SHAPES if s not in shapes] + [c for c in COLOURS if c not in colours][:4])
        if name in COLOURS:
            return self.pick((self.colour(name), f"{self.colour(name)} colour")), (name,)
        word = self.pick(words.SHAPE_WORDS[name])
        return self.pick((word, plural(word))), (name,)

    def fragment(self) -> Caption:
        """One or two attributes that the scene has, or one that it lacks; as negative prompts have them.

        An object of two is named in the plural or with "any", since "a circle" as a prompt is an image of one object.
        """
        scene = self.scene
        kinds = ["background", "background", "any colour", "any colour", "junk", "absent"]
        if scene.objects:
            kinds += ["shape", "shape", "shape", "name", "size", "place", "count"]
        parts = [self.attribute(kind) for kind in self.rng.sample(kinds, self.rng.choice((1, 1, 1, 2)))]
        return Caption(", ".join(parts), fragment=True)

    def attribute(self, kind: str) -> str:
        scene = self.scene
        if kind == "junk":
            return ", ".join(self.rng.sample(JUNK, self.rng.randint(1, 3)))
        if kind == "absent":
            return f"{self.pick(('no', 'no', 'without', 'without any', 'not'))} {self.absent()[0]}"
        if kind == "background":
            colour = self.colour(scene.background)
            return self.pick(("{0} background", "{1} background", "on {0}", "{0} backdrop", "background: {0}")).format(
                colour, with_article(colour)
            )
        if kind == "any colour":
            colours = [scene.background, *(o.colour for o in scene.objects)]
            colour = self.colour(self.rng.choice(colours))
            return self.pick(("{}", "{}", "{} colour", "the colour {}", "something {}")).format(colour)
        if kind == "count":
            one = len(scene.objects) == 1
            return self.pick(
                ("one shape", "a single shape", "1 shape") if one else ("two shapes", "2 shapes", "shapes")
            )
        o = self.rng.choice(scene.objects)
        noun = self.pick(words.SHAPE_WORDS[o.shape])
        size, colour = self.pick(words.SIZE_WORDS[o.size]), self.colour(o.colour)
        alone = len(scene.objects) == 1
        if kind == "shape":
            return self.pick(
                (noun, with_article(noun), plural(noun), f"any {noun}") if alone else (plural(noun), f"any {noun}")
            )
        if kind == "name":
            named = f"{colour} {noun}"
            return self.pick((named, with_article(named)) if alone else (f"{colour} {plural(noun)}", f"any {named}"))
        if kind == "size":
            return self.pick((size, f"{size} shape", f"{size} {noun}") if alone else (size, f"any {size} shape"))
        if scene.place:
            return self.pick(words.PLACE_WORDS[scene.place])
        return self.pick(("two shapes", "another shape"))
