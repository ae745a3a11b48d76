"""The words of the toy world's texts: names, synonyms, phrasings.

A list that ends in _TEST is held out of training; scores are of prompts and questions with these.
"""

SHAPE_WORDS = {
    "circle": ("circle", "circle", "circle", "disc", "disk", "dot", "round shape"),
    "square": ("square", "square", "square", "box", "block"),
    "triangle": ("triangle", "triangle", "triangle", "pyramid", "three-sided shape"),
    "cross": ("cross", "cross", "cross", "plus", "plus sign"),
}
PLURALS = {
    "round shape": "round shapes",
    "box": "boxes",
    "cross": "crosses",
    "plus": "pluses",
    "three-sided shape": "three-sided shapes",
}
COLOUR_WORDS = {
    "red": ("red", "red", "red", "scarlet", "crimson"),
    "green": ("green", "green", "green", "emerald"),
    "blue": ("blue", "blue", "blue", "azure"),
    "yellow": ("yellow", "yellow", "yellow", "golden"),
    "orange": ("orange", "orange", "orange", "tangerine"),
    "purple": ("purple", "purple", "purple", "violet"),
    "white": ("white", "white", "white", "snow white"),
    "black": ("black", "black", "black", "jet black"),
}
SIZE_WORDS = {
    "small": ("small", "small", "small", "little", "tiny", "mini"),
    "large": ("large", "large", "big", "big", "huge", "giant"),
}
# Phrasings that follow an object: of the side in {}, of every place, of every relation.
SIDE_WORDS = (
    "at the {}", "on the {}", "on the {} side", "to the {}", "{}", "in the {} part", "near the {} edge",
    "sitting on the {}", "at the {} of the picture", "on the {} hand side", "shown at the {}",
    "on the {} of the canvas", "at the {} of the scene", "to the {} of the photo", "which is at the {}",
    "that lies on the {}", "in the {} half",
)  # fmt: skip
PLACE_WORDS = {
    "in the centre": (
        "in the centre", "in the center", "in the middle", "at the center", "centred", "centered",
        "right in the middle", "sitting in the center", "at the centre of the picture", "in the middle of the picture",
        "shown in the centre", "in the centre of the canvas", "in the middle of the scene", "which is in the centre",
        "that lies in the middle",
    ),
    "at the left": tuple(words.format("left") for words in SIDE_WORDS),
    "at the right": tuple(words.format("right") for words in SIDE_WORDS),
    "at the top": (
        "at the top", "on the top", "at the top edge", "in the upper part", "top", "near the top",
        "near the upper edge", "sitting at the top", "at the top of the picture", "in the top half", "shown at the top",
        "at the top of the canvas", "on the top of the scene", "which is at the top", "that lies near the top",
    ),
    "at the bottom": (
        "at the bottom", "on the bottom", "at the bottom edge", "in the lower part", "bottom", "near the bottom",
        "near the lower edge", "sitting at the bottom", "at the bottom of the picture", "in the bottom half",
        "shown at the bottom", "at the bottom of the canvas", "on the bottom of the scene", "which is at the bottom",
        "that lies near the bottom",
    ),
}  # fmt: skip
PLACE_WORDS_TEST = {
    "in the centre": ("in the middle of the image", "that is centered"),
    "at the left": ("on the left of the image", "that is on the left"),
    "at the right": ("on the right of the image", "that is on the right"),
    "at the top": ("at the top of the image", "that is at the top"),
    "at the bottom": ("at the bottom of the image", "that is at the bottom"),
}
BESIDE_WORDS = (
    "{} of", "to the {} of", "on the {} of", "at the {} side of", "sitting {} of", "just to the {} of",
    "that is {} of", "shown to the {} of", "standing {} of", "that lies {} of",
)  # fmt: skip
RELATION_WORDS = {
    "left of": tuple(words.format("left") for words in BESIDE_WORDS),
    "right of": tuple(words.format("right") for words in BESIDE_WORDS),
    "above": (
        "above", "over", "on top of", "higher than", "sitting above", "just above", "that is above", "shown over",
        "floating above", "that lies above",
    ),
    "below": (
        "below", "under", "beneath", "underneath", "lower than", "sitting below", "just below", "that is below",
        "shown under", "floating below", "that lies below",
    ),
}  # fmt: skip
RELATION_WORDS_TEST = {
    "left of": ("which is left of", "placed to the left of", "located left of"),
    "right of": ("which is right of", "placed to the right of", "located right of"),
    "above": ("which is above", "placed over", "located above"),
    "below": ("which is below", "placed under", "located below"),
}
# Two of a kind, or two whose order is not said: how they lie.
ROWS = ("side by side", "next to each other", "in a row", "beside each other")
COLUMNS = ("one above the other", "on top of each other", "stacked", "one over the other")

FRAMES = (
    "a picture of {}", "an image of {}", "draw {}", "show {}", "show me {}", "paint {}", "please draw {}", "{} please",
    "i want {}", "i would like to see {}", "generate {}", "create {}", "make {}", "a photo of {}", "a photo with {}",
    "there is {}", "can you draw {}?", "create an image with {}", "imagine {}", "a drawing of {}", "an image with {}",
    "generate an image of {}", "a scene with {}", "an illustration of {}", "let me see {}", "{}, flat design",
    "simple: {}", "just {}", "only {}", "minimalist art: {}", "{}, vector art", "icon of {}", "a sketch of {}",
    "give us {}", "paint {} for us", "could you make {}?", "could you show me {}?", "we want {}", "we need {}",
    "a poster of {}", "a poster showing {}", "an image showing {}", "a picture that has {}", "a picture which shows {}",
    "let there be {}", "{}, thanks", "hello, {}", "try {}", "design {}", "depict {}", "produce an image of {}",
    "my picture should have {}", "it should show {}", "what about {}?", "i wish for {}", "now {}", "one can see {}",
    "you see {}", "a card with {}", "a logo with {}", "wallpaper: {}", "a flag that has {}", "here is {}",
)  # fmt: skip
FRAMES_TEST = (
    "could you paint {} for me?", "a sketch that shows {}", "give me {}", "a poster with {}", "{}, thank you",
    "i need an illustration with {}", "let us have {}", "an image that contains {}", "render {}", "we see {}",
)  # fmt: skip
# {0} is what the image shows, {1} the colour, {2} the colour with a or an.
BACKGROUNDS = (
    "{0} on {2} background", "{0} on {2} background", "{0} on {2} background", "{0} in front of {2} background",
    "{0}, {1} background", "{0} on {1}", "{0} against {1}", "{0} against {2} background", "{0} over {2} backdrop",
    "{0} with {2} background", "{0}, the background is {1}", "{0} on a plain {1} background", "{0} and {2} background",
    "on {2} background, {0}", "{1} background with {0}", "{2} background with {0} on it", "{1} background, {0}",
    "in front of {2} background there is {0}", "{0} on {2} canvas", "{0}, {1} backdrop", "{2} image with {0}",
    "{0} surrounded by {1}", "{0} in {2} image", "{0} on {2} field", "{0} on {2} surface", "{2} surface with {0}",
    "{0}, everything else is {1}", "{0} and all around it {1}", "{0} with {1} behind it", "{0}, {1} behind",
    "the background is {1}, {0}", "the background is {1} and shows {0}", "the image is {1}, with {0} on it",
    "on {1}: {0}", "{1}: {0}", "{0} set against {1}", "{0} painted on {1}", "{0} upon {2} ground", "{2} field with {0}",
    "{2} picture that has {0}", "against {2} backdrop, {0}", "{0} whose background is {1}", "all {1}, but for {0}",
    "{0} where the background is {1}", "{0} lying on {2} sheet", "{0} on something {1}", "with {2} background: {0}",
    "with {2} backdrop, {0}", "{0} using {2} background", "{0} on top of {2} backdrop",
    "in {2} setting, {0}", "{0} at {2} wall",
)  # fmt: skip
BACKGROUNDS_TEST = (
    "{0} placed on {2} backdrop", "{2} canvas that shows {0}", "over {2} background, {0}", "{0}, behind it only {1}",
    "{0} on a background that is {1}", "the backdrop is {1}, with {0}", "{0} on top of {2} surface", "against {1}: {0}",
)  # fmt: skip
EMPTY = (
    "{} background", "a plain {} background", "an empty {} image", "nothing but {}", "a {} image", "only {}",
    "an empty {} canvas", "a {} background without any shapes", "no shapes on a {} background", "just plain {}",
    "{} everywhere", "a blank {} picture",
)  # fmt: skip
EMPTY_TEST = ("a completely {} image", "an image that is only {}", "a {} background with no shapes")
# After a caption: what the image does not have.
ABSENT = (
    "{}, no {}",
    "{} without {}",
    "{} but no {}",
    "{}, without any {}",
    "{} and no {}",
    "no {1}, {0}",
    "{}, not {}",
    "{} that has no {}",
    "{}, and never {}",
    "{}, free of {}",
    "{}, avoid {}",
    "{}, leave out {}",
)
ABSENT_TEST = ("{} with no {}", "{}, there is no {}")
FILLERS = (
    "nice beautiful simple flat clean bright pretty lovely plain cute bold modern perfect solid single colourful neat "
    "crisp geometric glossy shiny matte abstract minimal detailed fine elegant digital cool very really quite some "
    "well smooth sharp friendly happy funny basic tidy great good new old quick calm quiet soft strong"
).split()  # fmt: skip
FILLERS_TEST = "gorgeous awesome charming vivid striking tasteful stylish classic handsome splendid".split()

AMOUNTS = ("no shape", "one shape", "two shapes")  # in a check's reason


def with_article(words: str) -> str:
    """`words` with a or an in front."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def plural(word: str) -> str:
    return PLURALS.get(word, word + "s")
