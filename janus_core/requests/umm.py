"""TorchUMM (AIFrontierLab/TorchUMM) on this core: its command line with our models behind its names.

`python -m janus_core.requests.umm infer --config X` runs TorchUMM's own command; `register()` does it in a program.
"""

import importlib
import pkgutil
import sys
from pathlib import Path

from .request import Request, RequestError
from .runner import Runner

NAMES = ("janus", "janus_pro", "janus_flow")
OTHER_FOLDERS = {"show_o2": "show_o"}  # of backbones whose folder has another name


class Backbone:
    """What TorchUMM calls: a factory without arguments, then `load`, then a method per task."""

    runner: Runner | None = None

    def load(self, cfg: dict):
        """Loads the checkpoint of a backbone_cfg."""
        self.runner = Runner.load(cfg)

    def generation(self, prompt=None, output_path=None, generation_cfg=None) -> dict:
        return self._run("generation", prompt, (), output_path, generation_cfg)

    def editing(self, prompt=None, images=(), output_path=None, editing_cfg=None) -> dict:
        return self._run("editing", prompt, images, output_path, editing_cfg)

    def understanding(self, prompt=None, images=(), videos=(), understanding_cfg=None) -> dict:
        if videos:
            raise RequestError("These models read images, not videos.")
        return self._run("understanding", prompt, images, None, understanding_cfg)

    def _run(self, task: str, prompt, images, output_path, params) -> dict:
        if self.runner is None:
            raise RequestError("The backbone is not loaded: call load with its backbone_cfg.")
        path = None if output_path is None else str(output_path)
        values = {"task": task, "prompt": prompt, "images": [str(i) for i in images or ()], "output_path": path}
        return self.runner.run(Request.of({**values, "params": dict(params or {})}))


def register():
    """Registers our backbones with TorchUMM, and its others so that each is imported only when it is used.

    Raises:
        RequestError: TorchUMM is not installed.
    """
    try:
        from umm.core import registry
    except ImportError as error:
        advice = "`pip install -e` its repository, or set PYTHONPATH to its src"
        raise RequestError(f"TorchUMM cannot be imported ({error}): {advice}.") from None
    for name in NAMES:
        registry.register("backbone", name, Backbone)
    folder = Path(registry.__file__).parents[1] / "backbones"  # importing it would import every model's libraries
    others = {found.name: found.name for found in pkgutil.iter_modules([str(folder)]) if found.ispkg} | OTHER_FOLDERS
    for name in others.keys() - set(registry.list_registered("backbone")):
        registry.register("backbone", name, _on_demand(f"umm.backbones.{others[name]}"))


def _on_demand(module: str):
    """A factory that imports one of TorchUMM's backbones when it is called."""

    def factory():
        found = vars(importlib.import_module(module))
        (backbone,) = (value for name, value in found.items() if name.endswith("Backbone"))
        return backbone()

    return factory


def main(argv: list[str] | None = None) -> int:
    """TorchUMM's command line."""
    register()
    from umm.cli.main import main as umm_main

    return umm_main(argv)


if __name__ == "__main__":
    sys.exit(main())
