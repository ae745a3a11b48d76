"""Exceptions for input that cannot be used; each message is one sentence for the user."""


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


class DownloadError(JanusError):
    """A file could not be fetched from the Hugging Face hub."""


def first_line(error: Exception) -> str:
    """The first line of another library's error, to quote in a message; its type if it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
