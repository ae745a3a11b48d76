"""What stock nodes set on a MODEL or a CONDITIONING and token sampling cannot act on."""

from comfy.patcher_extension import WrappersMP

from . import conditioning

KNOWN = {  # of a conditioning
    conditioning.FAMILY,
    conditioning.TEXT,
    conditioning.IDS,
    conditioning.ENCODED,
    conditioning.SPECIAL,
    conditioning.PART,
    conditioning.MASK,
    "pooled_output",
    "hooks",  # refused
}
OURS = (WrappersMP.OUTER_SAMPLE, "janus")  # the wrapper of every Janus MODEL
HARMLESS = ("transformer_options", "disable_cfg1_optimization")  # of model_options


def of_conditioning(extra: dict) -> list[str]:
    """Keys of a conditioning's dict without effect, such as area, mask, strength, control and gligen."""
    return [key for key, value in extra.items() if key not in KNOWN and value is not None and value is not False]


def of_model(patcher) -> list[str]:
    """What is set on a MODEL without effect: each with the node that set it, as far as its functions tell."""
    options = patcher.model_options
    found = [_named(key, value) for key, value in options.items() if key not in HARMLESS]
    found += [_named(key, value) for key, value in options.get("transformer_options", {}).items()]
    for kind, keys in patcher.wrappers.items():
        found += [_named(key or kind, value) for key, value in keys.items() if value and (kind, key) != OURS]
    if "model_sampling" in patcher.object_patches:
        found.append("model_sampling")
    return list(dict.fromkeys(found))


def _named(key: str, value) -> str:
    """`NODE (key)` where a function among the value was made inside a node's class, else the key."""
    for function in _functions(value):
        owner, inside, _ = getattr(function, "__qualname__", "").partition(".<locals>.")
        if inside and not owner.startswith("ModelPatcher"):
            return f"{owner.split('.')[0]} ({key})"
    return key


def _functions(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for one in value:
            yield from _functions(one)
    else:
        yield value
