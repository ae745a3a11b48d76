"""The subgraph blueprints: both families' text to image, as one node each."""

from .builder import Builder


def blueprints(schema: dict):
    """(name, JSON) of each blueprint."""
    t = Builder("Janus-Pro (Text to Image)", schema)
    t.group("Load", 0)
    t.load_pro()
    t.empty()
    t.group("Prompt", 1)
    prompt = t.prompt(t.pro, "a red circle on a blue background")
    t.group("Sample", 2)
    sampled = t.sample_pro(prompt)
    t.group("Decode", 3)
    image = t.decode(sampled, t.pro)
    widgets = [(prompt, "text"), (prompt, "negative_text"), *_size(t), *_of(sampled, "seed", "cfg", "temperature")]
    text = "Generates images from a prompt with Janus-Pro. Select the official checkpoint in model_name."
    yield t.name, t.blueprint(image, [*widgets, (t.pro, "model_name")], text)

    t = Builder("JanusFlow (Text to Image)", schema)
    t.group("Load", 0)
    t.load_flow()
    t.empty()
    t.group("Prompt", 1)
    prompt = t.prompt(t.flow, "a white cross on a purple background")
    t.group("Sample", 2)
    sampled = t.sample_flow(prompt)
    t.group("Decode", 3)
    image = t.decode(sampled, t.vae)
    widgets = [(prompt, "text"), (prompt, "negative_text"), *_size(t), *_of(sampled, "seed", "steps", "cfg")]
    text = "Generates images from a prompt with JanusFlow. Select the official checkpoint in model_name and sdxl_vae."
    yield t.name, t.blueprint(image, [*widgets, (t.flow, "model_name"), (t.vae, "vae_name")], text)


def _size(t: Builder):
    return _of(t.latent, "width", "height", "batch_size")


def _of(output, *names: str):
    return [(output.node, name) for name in names]
