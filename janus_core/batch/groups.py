"""Groups of outputs that are sampled together: the same whatever the engine, the shards or a restart."""

import hashlib
import json
from collections import defaultdict

from ..errors import JanusError
from ..prompt import PromptEncoder
from ..sampling.settings import FlowSamplerSettings, TextSamplerSettings, TokenSamplerSettings, settings_of
from .manifest import OTHER_SETTINGS
from .outputs import BatchError, Output
from .sample import sampler_settings

Group = list[Output]


def sampler_kind(task: str, family: str) -> type:
    """The settings dataclass of a task."""
    if task == "describe":
        return TextSamplerSettings
    return FlowSamplerSettings if family == "janusflow" else TokenSamplerSettings


def check_settings(outputs: list[Output], family: str):
    """Raises SamplingError or BatchError for a setting that is out of range or not of the family."""
    seen = set()
    for output in outputs:
        key = (output.task, json.dumps(output.settings, sort_keys=True))
        if key in seen:
            continue
        seen.add(key)
        others = {name: value for name, value in output.settings.items() if name in OTHER_SETTINGS}
        settings_of(sampler_kind(output.task, family), sampler_settings(output.settings))
        chat = ("roles", "system_prompt") if family == "janusflow" else ()
        for name in {"describe": ("size",), "generate": chat}[output.task]:
            if name in others:
                what = "an answer" if output.task == "describe" else "an image of JanusFlow"
                raise BatchError(f"The job {output.job} has the setting {name}, which is not for {what}: remove it.")


def make_groups(outputs: list[Output], prompts: PromptEncoder, batch_size: int) -> list[Group]:
    """Groups of up to `batch_size` images of one setting, ordered by the length of their prompts.

    A grid is never divided: one of more images than the batch size is a group of its own.
    """
    by_setting = defaultdict(list)
    for output in outputs:
        by_setting[_setting(output)].append((_length(output, prompts), output))
    groups = []
    for same in by_setting.values():
        group, images = [], 0
        for _, output in sorted(same, key=lambda one: one[0]):
            if group and images + len(output.seeds) > batch_size:
                groups.append(group)
                group, images = [], 0
            group.append(output)
            images += len(output.seeds)
        groups.append(group)
    return groups


def shard_of(groups: list[Group], index: int, count: int) -> list[Group]:
    """The groups of shard `index` of `count`: every count-th, so that long prompts are spread."""
    return groups[index::count]


def parse_shard(text: str) -> tuple[int, int]:
    """(i, n) of "i/n". Raises BatchError unless 0 <= i < n."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise BatchError(f"--shard {text[:20]} must be i/n with i from 0 to n - 1, such as 0/4.")
    return int(index), int(count)


def group_name(group: Group) -> str:
    """A short name that only this group has."""
    return hashlib.sha256("\n".join(output.path for output in group).encode("utf-8", "replace")).hexdigest()[:16]


def _setting(output: Output) -> str:
    """What the outputs of a group have in common."""
    common = [output.task, output.settings, output.negative]
    if output.task == "describe":
        common += [output.prompt, len(output.images)]
    return json.dumps(common, sort_keys=True)


def _length(output: Output, prompts: PromptEncoder) -> int:
    """Tokens of the prompt; 0 where it cannot be encoded, which the worker reports."""
    if output.task == "describe":
        return 0
    try:
        return len(prompts.ids(output.prompt))
    except JanusError:
        return 0
