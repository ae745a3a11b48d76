"""The name under which ComfyUI shows our errors."""

import copyreg

from ..janus_core import errors


def register():
    """Makes ComfyUI show `JanusError` for each of our errors.

    It shows the module and the qualified name of an exception's class, and the module of a custom node is its path.
    Only these names change: the classes stay the same, and their instances can be pickled.
    """
    for kind in [errors.JanusError, *errors.JanusError.__subclasses__()]:
        copyreg.pickle(kind, _reduced)
        kind.__module__, kind.__qualname__ = "builtins", errors.JanusError.__name__


def _reduced(error):
    return _restored, (type(error).__name__, error.args)


def _restored(name: str, args: tuple):
    return getattr(errors, name)(*args)
