"""YAML or JSON configurations in TorchUMM's form: `inference: {backbone, backbone_cfg, request or requests}`."""

import json
import os
import re
from pathlib import Path

from ..files import parse_json, read_text, user_path
from .request import RequestError

VARIABLE = re.compile(r"\$\{(\w+)\}")


def read_config(path: str | Path, overrides: list[str] = ()) -> dict:
    """The configuration of a file: `${NAME}` is replaced by the environment's, then `a.b=value` overrides are set.

    Raises:
        RequestError: it is not a mapping in YAML or JSON, or an override cannot be set.
    """
    path = user_path(path, RequestError)
    suffix = path.suffix.lower()
    if suffix not in (".yaml", ".yml", ".json"):
        raise RequestError(f"{path} must be a .yaml, .yml or .json file.")
    text = read_text(path, RequestError)
    config = _expanded(parse_json(text, path, RequestError) if suffix == ".json" else _parsed_yaml(text, path))
    if not isinstance(config, dict):
        raise RequestError(f"{path} must hold a mapping.")
    for override in overrides:
        _set(config, override)
    return config


def inference_of(config: dict) -> tuple[dict, list[dict], int]:
    """(backbone_cfg, requests, batch size) of a configuration.

    Raises:
        RequestError: there is no request.
    """
    block = config.get("inference", config)
    if not isinstance(block, dict) or not isinstance(block.get("backbone_cfg", {}), dict):
        raise RequestError("The configuration needs `inference` with `backbone_cfg` and `request` or `requests`.")
    requests = block.get("requests")
    if requests is None:
        single = block.get("request")
        names = ("task", "prompt", "images", "videos", "params", "metadata", "output_path")
        requests = [{name: block[name] for name in names if name in block} if single is None else single]
    if not isinstance(requests, list) or not requests or not all(isinstance(one, dict) for one in requests):
        raise RequestError("`requests` must be a list of mappings.")
    batch_size = block.get("batch_size", 8)
    if type(batch_size) is not int or batch_size < 1:
        raise RequestError("batch_size must be a whole number of 1 or more.")
    return block.get("backbone_cfg", {}), requests, batch_size


def _parsed_yaml(text: str, name):
    try:
        import yaml
    except ImportError:
        raise RequestError("YAML configurations need PyYAML: `pip install pyyaml`, or write JSON.") from None
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise RequestError(f"{name} is not valid YAML ({' '.join(str(error).split())[:100]}).") from None


def _expanded(value):
    """`${NAME}` in texts replaced by the environment's; a name that is not set stays as it is."""
    if isinstance(value, str):
        return VARIABLE.sub(lambda found: os.environ.get(found[1], found[0]), value)
    if isinstance(value, dict):
        return {key: _expanded(one) for key, one in value.items()}
    return [_expanded(one) for one in value] if isinstance(value, list) else value


def _set(config: dict, override: str):
    """Sets `a.b=value`."""
    key, equals, value = override.partition("=")
    *parents, last = key.strip().split(".")
    if not equals or not last or not all(parents):
        raise RequestError(f"--set {override[:60]} must be a.b=value.")
    for name in parents:
        config = config.setdefault(name, {})
        if not isinstance(config, dict):
            raise RequestError(f"--set {override[:60]}: {name} is not a mapping.")
    config[last] = _parsed_yaml(value, f"--set {key}")


def jsonable(value):
    """A result as JSON holds it; images are left out."""
    if isinstance(value, dict):
        return {str(key): jsonable(one) for key, one in value.items() if key not in ("image", "images")}
    return json.loads(json.dumps(value, default=str))
