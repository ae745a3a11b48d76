"""Pretraining of the understanding encoder: its labels, its losses, and models that load it."""

import json
import random

import torch
from core.training_models import SIZES, tiny

from demo.recipe import new_models, train_encoder
from demo.recipe.scenes import COLOURS, SHAPES, WIDER, Scene, SceneObject, random_scene
from janus_core.checkpoint.files import read_tensors

CONFIG = {
    "seed": 0,
    "siglip": SIZES["siglip"],
    "rows": 8,
    "loop": {"steps": 60, "lr": 3e-3, "warmup": 3, "precision": "no", "log_every": 15},
}


def test_labels_are_of_the_object_that_covers_a_patch():
    scene = Scene(
        (SceneObject("square", "red", "large", 32, 64), SceneObject("cross", "blue", "small", 96, 64)),
        "white",
        relation="left of",
    )
    labels = dict(zip(train_encoder.CLASSES, train_encoder.patch_labels(scene, 16).T.view(-1, 8, 8)))
    assert (labels["background"] == list(COLOURS).index("white")).all() and (labels["count"] == 2).all()
    for name in ("shape", "colour", "size", "column", "row"):
        assert (labels[name][:2] == 0).all(), "no object is above"
        assert (labels[name][3, 1] == labels[name][4, 2]).all()
    assert labels["shape"][4, 2] == 1 + SHAPES.index("square") and labels["shape"][4, 6] == 1 + SHAPES.index("cross")
    assert labels["colour"][4, 2] == 1 + list(COLOURS).index("red")
    assert (labels["size"][4, 2], labels["size"][4, 6]) == (2, 1)
    assert (labels["column"][4, 2], labels["column"][4, 6], labels["row"][4, 2]) == (2, 4, 3)
    assert (labels["shape"] == 1 + SHAPES.index("cross")).sum() == 4, "a small object covers four patches"


def test_every_label_is_within_its_classes():
    rng = random.Random(0)
    seen = {"shape": set(), "colour": set()}
    for _ in range(100):
        scene = random_scene(rng, world=WIDER)
        assert not scene.held_out
        labels = dict(zip(train_encoder.CLASSES, train_encoder.patch_labels(scene, 16).T))
        for name, count in train_encoder.CLASSES.items():
            assert 0 <= labels[name].min() and labels[name].max() < count
        for name, values in seen.items():
            values |= set(labels[name].tolist())
    assert all(len(values) == train_encoder.CLASSES[name] for name, values in seen.items()), "all of the wider world"


def test_the_losses_fall_and_models_load_the_encoder(tmp_path):
    path = train_encoder.train_encoder(CONFIG, tmp_path)
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    assert all(last[name] < first[name] for name in train_encoder.CLASSES)
    for family in ("janus", "janusflow"):
        tower = new_models.tower_of(tiny(family)[0].model)
        tower.load_state_dict(read_tensors(path))
        assert tower(torch.zeros(1, 3, 128, 128)).isfinite().all()
