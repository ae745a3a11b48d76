"""The exceptions that janus_core raises for input it cannot use; each message is one sentence for the user."""


class JanusError(ValueError):
    """Base of every error that a user can act on."""


class CheckpointError(JanusError):
    """A checkpoint is missing, incomplete, corrupt, or of another model."""


class DeviceError(JanusError):
    """The device that was asked for is not here."""


class PromptError(JanusError):
    """A prompt cannot be encoded, or does not fit the model's context."""


class ImageError(JanusError):
    """A picture cannot be read or has an unusable size."""


class SamplingError(JanusError):
    """A sampling setting is out of range, or sampling produced numbers that are not finite."""


class DownloadError(JanusError):
    """A file could not be fetched from the Hugging Face hub."""
