"""Faults that can be put back on purpose, to see that the fuzzer finds each: python -m tests.fuzz --faults."""

import json

from janus_core import errors, files, image, schema
from janus_core.checkpoint import build, params, quantize
from janus_core.checkpoint import files as weight_files
from janus_core.finetunes import think
from janus_core.sampling import settings


def largest_layer():
    """The number of layers is the largest number in a name."""

    def count(self, prefix):
        import re

        found = [re.match(re.escape(prefix) + r"\.([0-9]{1,12})\.", name) for name in self.shapes]
        return max((int(match[1]) + 1 for match in found if match), default=0)

    params.Shapes.count = count


def unchecked_json():
    """Deep nesting and huge numbers in JSON are not caught."""

    def parse(text, name, error=errors.CheckpointError):
        try:
            return json.loads(text)
        except json.JSONDecodeError as reason:
            raise error(f"{name} is not valid JSON ({reason}).") from None

    files.parse_json = parse


def any_temperature():
    """A temperature may be so small that logits divided by it overflow."""
    settings.TEMPERATURE = schema.Number(0, 5)


def clipped_greys():
    """Grey of 16 bits is clipped, not scaled."""
    image._from_deep_grey = lambda deep: deep.convert("RGB")


def any_file():
    """Pipes and devices are opened."""

    def regular_file(path, error=errors.CheckpointError):
        if not path.exists():
            raise error(f"There is no file {path}.")
        return path

    image.regular_file = files.regular_file = weight_files.regular_file = regular_file


def later_shard():
    """The last shard that has a tensor gives it, whatever the index says."""

    def read_shards(folder, index_path):
        tensors = {}
        for shard in sorted(set(weight_files._weight_map(index_path).values())):
            tensors.update(weight_files.read_tensors(folder / shard))
        return tensors

    weight_files._read_shards = read_shards


def any_dtype():
    """Weights may be integers, and quantised ones of any dtype and scale."""
    build._is_weight = lambda tensor, name, quantized: True
    quantize._check_layer = lambda layer, dtype, tensors: None


def no_panics():
    """Only Exceptions of libraries are converted, not the panics of Rust code."""
    import contextlib

    from janus_core import prompt

    @contextlib.contextmanager
    def library_errors(kind, message):
        try:
            yield
        except errors.JanusError:
            raise
        except Exception as error:
            raise kind(f"{message} ({errors.first_line(error)}).") from None

    prompt.library_errors = library_errors


def unchecked_training():
    """A training config is used as it is."""
    from janus_core.training import settings as training_settings

    training_settings.check_finetune = lambda config, name: None


def unchecked_plans():
    """The prompt and the recipe of a plan are used as they are."""
    think.check = lambda *args: None


FAULTS = {
    function.__name__: function
    for function in (
        largest_layer,
        unchecked_json,
        any_temperature,
        clipped_greys,
        any_file,
        later_shard,
        any_dtype,
        no_panics,
        unchecked_training,
        unchecked_plans,
    )
}
