"""Exceptions for input that cannot be used; each message is one sentence for the user."""

from contextlib import contextmanager


class JanusError(ValueError):
    """Base of every error that a user can act on."""


class CheckpointError(JanusError):
    """A checkpoint is missing, incomplete, corrupt, or of another model."""


class DeviceError(JanusError):
    """The requested device is not available."""


class PromptError(JanusError):
    """A prompt cannot be encoded, or does not fit the model's context."""


class ImageError(JanusError):
    """An image cannot be read or has an unusable size."""


class SamplingError(JanusError):
    """A sampling setting is out of range, or sampling produced numbers that are not finite."""


class OutputError(JanusError):
    """A file cannot be written."""


class TrainingError(JanusError):
    """A training config or a saved state cannot be used, or the losses are not finite."""


class DownloadError(JanusError):
    """A file could not be fetched from the Hugging Face hub."""


def not_finite(where: str = "") -> SamplingError:
    """The error for a model's output that is not finite; `where` says when, as in " at step 3"."""
    return SamplingError(f"The model's output is not finite{where}: use bf16 or fp32 weights, or check the LoRA.")


def first_line(error: BaseException) -> str:
    """The first line of another library's error, to quote in a message; its type if it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


@contextmanager
def library_errors(kind: type[JanusError], message: str):
    """Turns what a library raises for bad input into `kind`: the message, and the library's reason in brackets.

    An error that says that memory ran out is no bad input, and is left as it is. Panics of Rust code, which are not
    Exceptions (pyo3's PanicException), are converted too.
    """
    try:
        yield
    except (JanusError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        if is_out_of_memory(error):
            raise
        raise kind(f"{message} ({first_line(error)}).") from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python says that memory ran out."""
    if isinstance(error, MemoryError):
        return True
    signs = ("out of memory", "not enough memory", "cannot allocate memory", "could not create a primitive")
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in signs)
