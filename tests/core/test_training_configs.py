"""The example configs can be used as they are, but for the names of files, and docs/training.md names them."""

import pytest
from workflow_files import ROOT

from janus_core.training import read_config
from janus_core.training.settings import LoopSettings, check_finetune

CONFIGS = sorted((ROOT / "janus_core" / "training" / "configs").glob("*.json"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_an_example_config(path):
    config = read_config(path)
    check_finetune(config, path)
    settings = LoopSettings(**config["loop"], seed=config["seed"])
    assert settings.warmup < settings.steps
    assert config["validation"]["prompts"]
    assert bool(config.get("vae")) >= ("flow" in path.stem)
    assert path.name in (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
