"""Runs requests with a loaded pipeline; requests of one setting are sampled together."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from .. import loading
from ..batch.outputs import image_seed
from ..batch.sample import sample_answers, sample_images
from ..files import user_path, write_atomically
from ..image import open_image, write_image
from ..pipeline import JanusFlowPipeline
from ..sampling.settings import MAX_NEW_TOKENS, SEED
from ..schema import FLAG, Anything, Number, Text, Whole, check_fields
from .request import Request, RequestError

DTYPES = {
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
    "half": torch.float16,
    "fp32": torch.float32,
    "float32": torch.float32,
}
SETTINGS = {  # TorchUMM's names: ours
    "cfg_weight": "guidance",
    "guidance_scale": "guidance",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "num_inference_steps": "steps",
    "roles": "roles",
    "image_guidance": "image_guidance",
}
GENERATION = {
    "parallel_size": Whole(1, 4096),
    "image_token_num_per_image": Whole(1, 2**20),
    "img_size": Whole(1, 2**16),
    "patch_size": Whole(1, 2**16),
    "negative_prompt": Text(empty=True),
    "seed": SEED,
    **{name: Anything() for name in SETTINGS},
}
UNDERSTANDING = {
    "max_new_tokens": Whole(1, 2**31),
    "do_sample": FLAG,
    "use_cache": FLAG,
    "temperature": Number(0, 5),
    "top_p": Number(0, 1),
    "seed": SEED,
    "roles": Text(),
    "system_prompt": Text(empty=True),
}
DEFAULT_GENERATION = {  # by our names
    "janus": {"temperature": 1.0, "parallel_size": 4, "guidance": 5.0},
    "janusflow": {"parallel_size": 5, "guidance": 2.0, "steps": 30},
}
DEFAULT_UNDERSTANDING = {"max_new_tokens": MAX_NEW_TOKENS, "do_sample": False}
PATHS = ("model_path", "vae_path", "janus_root")  # janus_root is not needed here
CONFIG = (*PATHS, "seed", "torch_dtype", "generation_cfg", "understanding_cfg", "device")


@dataclass(frozen=True)
class Plan:
    """How a request is run.

    Attributes:
        seeds: one per image or answer.
        settings: of the sampler.
        setting: what the requests of one batch have in common.
    """

    seeds: list[int]
    settings: dict
    setting: str
    negative: str = ""


class Runner:
    """A pipeline with the settings of its requests.

    Args:
        pipe: of janus_core.load.
        seed: the base of the images' seeds. Image k of a request without a seed of its own has a seed that depends on
            this one, the prompt, the last parts of the output path, and k: not on what ran before, or where.
        generation_cfg, understanding_cfg: settings by TorchUMM's names, in place of its defaults.

    Raises:
        RequestError: a setting is unknown.
    """

    def __init__(self, pipe, seed: int = 42, generation_cfg: dict | None = None, understanding_cfg: dict | None = None):
        self.pipe, self.seed = pipe, seed
        check_fields({"seed": seed}, {"seed": SEED}, "The configuration", RequestError)
        defaults = DEFAULT_GENERATION[pipe.model.family]
        self.generation_cfg = {**defaults, **_generation(generation_cfg or {}, "generation_cfg")}
        self.understanding_cfg = {**DEFAULT_UNDERSTANDING, **(understanding_cfg or {})}
        check_fields(self.understanding_cfg, UNDERSTANDING, "understanding_cfg", RequestError, closed=True)
        self.asked = Counter()

    @classmethod
    def load(cls, cfg: dict) -> "Runner":
        """A runner from a TorchUMM `backbone_cfg`: model_path, vae_path, seed, torch_dtype, generation_cfg, ….

        Raises:
            RequestError, CheckpointError.
        """
        unknown = [name for name in cfg if name not in CONFIG]
        if unknown:
            raise RequestError(f"backbone_cfg has no setting {unknown[0]}, only {', '.join(CONFIG)}.")
        if not cfg.get("model_path"):
            raise RequestError("backbone_cfg needs a model_path.")
        name = str(cfg.get("torch_dtype", "bfloat16")).lower()
        if name not in DTYPES:
            raise RequestError(f"torch_dtype is {name}, it must be one of {', '.join(DTYPES)}.")
        pipe = loading.load(
            cfg["model_path"], device=cfg.get("device"), dtype=DTYPES[name], vae=cfg.get("vae_path") or None
        )
        return cls(pipe, cfg.get("seed", 42), cfg.get("generation_cfg"), cfg.get("understanding_cfg"))

    def run(self, request: Request | dict) -> dict:
        """Runs one request; see `run_many`."""
        return self.run_many([request])[0]

    def run_many(self, requests: Iterable[Request | dict], batch_size: int = 8) -> list[dict]:
        """Runs requests, those of one setting in batches of up to `batch_size` images.

        Returns:
            In the requests' order, for generation and editing {"image", "images", "saved_paths"}, for understanding
            {"text", "sft_format"}, as TorchUMM's backbones do.

        Raises:
            RequestError, PromptError, ImageError, SamplingError, OutputError.
        """
        requests = [Request.of(request) for request in requests]
        plans = [self._plan(request) for request in requests]
        groups = defaultdict(list)
        for k, plan in enumerate(plans):
            groups[plan.setting].append(k)
        results = [None] * len(requests)
        for members in groups.values():
            found = self._run_group([requests[k] for k in members], [plans[k] for k in members], batch_size)
            for k, result in zip(members, found):
                results[k] = result
        return results

    def _plan(self, request: Request) -> Plan:
        if request.task == "understanding":
            cfg = {**self.understanding_cfg, **request.params}
            check_fields(cfg, UNDERSTANDING, "params", RequestError, closed=True)
            settings = {"max_new_tokens": min(cfg["max_new_tokens"], MAX_NEW_TOKENS)}
            settings["temperature"] = cfg.get("temperature", 1.0) if cfg["do_sample"] else 0.0
            settings |= {name: cfg[name] for name in ("top_p", "roles", "system_prompt") if name in cfg}
            seeds = self._seeds(request, cfg, 1)
            return Plan(seeds, settings, _setting(request.prompt, len(request.images), settings))
        cfg = dict(self.generation_cfg)
        if request.task != "editing":
            cfg.pop("image_guidance", None)  # a configuration may set it for all its requests
        cfg |= _generation(request.params, "params")
        settings = {name: value for name, value in cfg.items() if name in SETTINGS.values()}
        if "img_size" in cfg:
            settings["size"] = [cfg["img_size"], cfg["img_size"]]
        _check_tokens(cfg, self.pipe.patch_size)
        negative = cfg.get("negative_prompt", "")
        seeds = self._seeds(request, cfg, cfg["parallel_size"])
        source = request.images if request.task == "editing" else None
        return Plan(seeds, settings, _setting(request.task, source, settings, negative), negative)

    def _seeds(self, request: Request, cfg: dict, count: int) -> list[int]:
        if cfg.get("seed") is not None:
            return [(cfg["seed"] + k) % 2**64 for k in range(count)]
        parts = "/".join(Path(request.output_path).parts[-3:]) if request.output_path else ""
        job = f"{request.prompt}\n{parts}"
        self.asked[job] += 1  # the same question again gives another image, as from a generator
        return [image_seed(self.seed, f"{job}\n{self.asked[job]}", k) for k in range(count)]

    def _run_group(self, requests: list[Request], plans: list[Plan], batch_size: int) -> list[dict]:
        if requests[0].task == "understanding":
            return self._understand(requests, plans, batch_size)
        settings, prompts = dict(plans[0].settings), []
        if requests[0].task == "editing":
            weight = settings.pop("image_guidance", 5.0)
            if isinstance(self.pipe, JanusFlowPipeline):
                raise RequestError("JanusFlow cannot edit images: load a Janus-4o checkpoint.")
            roles = settings.get("roles", "auto")
            source = open_image(requests[0].images[0])
            edits = [self.pipe.edit_prompt(source, request.prompt, weight, roles) for request in requests]
            prompts = [edit for edit, plan in zip(edits, plans) for _ in plan.seeds]
        else:
            prompts = [request.prompt for request, plan in zip(requests, plans) for _ in plan.seeds]
        seeds = [seed for plan in plans for seed in plan.seeds]
        negative = plans[0].negative
        found, _ = sample_images(self.pipe, prompts, seeds, settings, batch_size=batch_size, negative=negative)
        images, results = iter(found), []
        for request, plan in zip(requests, plans):
            own = [next(images) for _ in plan.seeds]
            saved = save_images(own, request.output_path, [{"prompt": request.prompt, "seed": s} for s in plan.seeds])
            results.append({"image": own[0], "images": own, "saved_paths": saved})
        return results

    def _understand(self, requests: list[Request], plans: list[Plan], batch_size: int) -> list[dict]:
        question = requests[0].prompt or "Describe the image."
        images = [[open_image(path) for path in request.images] for request in requests]
        seeds = [plan.seeds[0] for plan in plans]
        settings = plans[0].settings
        answers = sample_answers(self.pipe, images, question, seeds, settings, batch_size=batch_size)
        chat = {name: settings[name] for name in ("roles", "system_prompt") if name in settings}
        text = self.pipe.prompts.question_text(question, len(images[0]), **chat)
        return [{"text": answer, "sft_format": text} for answer in answers]


def save_images(images: list[Image.Image], output_path: str | None, settings: list[dict]) -> list[str]:
    """Writes images under TorchUMM's names: the path itself for one, `stem_{i}` for several; PNG without a suffix.

    Returns:
        The paths; none without an output path.
    """
    if not output_path:
        return []
    path = user_path(output_path, RequestError)
    path = path if path.suffix else path.with_suffix(".png")
    paths = [path.with_name(f"{path.stem}_{k}{path.suffix}") for k in range(len(images))]
    paths = [path] if len(images) == 1 else paths
    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}.get(path.suffix.lower())
    for image, target, its_settings in zip(images, paths, settings):
        if kind is None:
            write_image(image, target, its_settings)
        else:
            write_atomically(target, lambda file, image=image: image.save(file, format=kind))
    return [str(target) for target in paths]


def _generation(cfg: dict, where: str) -> dict:
    """Settings of images, by our names where SETTINGS has them. Raises RequestError for one that is unknown."""
    check_fields(cfg, GENERATION, where, RequestError, closed=True)
    others = {name: value for name, value in cfg.items() if name not in SETTINGS}
    return others | {ours: cfg[name] for name, ours in SETTINGS.items() if name in cfg}


def _setting(*common) -> str:
    return json.dumps(common, sort_keys=True)


def _check_tokens(cfg: dict, patch: int):
    """Raises RequestError where image size, patch size (the model's is `patch`) and number of tokens do not agree."""
    size, asked, tokens = (cfg.get(name) for name in ("img_size", "patch_size", "image_token_num_per_image"))
    if asked not in (None, patch):
        raise RequestError(f"patch_size is {asked}, it must be {patch}.")
    if None not in (size, tokens) and tokens != (size // patch) ** 2:
        raise RequestError(f"image_token_num_per_image is {tokens}, an img_size of {size} has {(size // patch) ** 2}.")
