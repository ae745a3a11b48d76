"""Captioning a folder, with our node and with stock dataset nodes."""

import pytest
from graphs import Graph
from PIL import Image


@pytest.fixture()
def folder(server):
    """Three images, one of which has a caption, and a file that is not an image."""
    folder = server.base / "input" / "dataset"
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "green")):
        Image.new("RGB", (60, 40), colour).save(folder / f"{name}.png")
    (folder / "bad.jpg").write_bytes(b"not an image")
    (folder / "c.txt").write_text("existing")
    return folder


def caption_graph(**inputs):
    graph = Graph()
    loader = graph.add("JanusProLoader", model_name="ar-a", weight_dtype="default")
    node = graph.add("JanusCaptionFolder", clip=[loader, 1], folder="dataset", question="What?", max_new_tokens=4,
                     prefix="style, ", overwrite=False, **inputs)  # fmt: skip
    return graph, node


def test_caption_folder(server, folder):
    graph, node = caption_graph()
    (report,) = server.run(graph)[node]["text"]
    assert report.startswith("2 written, 1 skipped, 1 failed") and "bad.jpg" in report
    assert (folder / "c.txt").read_text() == "existing"
    assert all((folder / f"{name}.txt").read_text().startswith("style, ") for name in "ab")
    (folder / "a.txt").unlink()
    (report,) = server.run(graph)[node]["text"]
    assert report.startswith("1 written, 2 skipped, 1 failed")
    graph[node]["inputs"]["overwrite"] = True
    (report,) = server.run(graph)[node]["text"]
    assert report.startswith("3 written, 0 skipped") and (folder / "c.txt").read_text() != "existing"


def test_answers_feed_stock_dataset_nodes(server, folder):
    """Load Image (from Folder), Janus Describe Image, Save Image-Text (to Folder)."""
    (folder / "bad.jpg").unlink()
    graph = Graph()
    loader = graph.add("JanusProLoader", model_name="ar-a", weight_dtype="default")
    images = graph.add("LoadImageDataSetFromFolder", folder="dataset")
    answer = graph.add("JanusDescribeImage", clip=[loader, 1], image=[images, 0], question="What?", max_new_tokens=4,
                       temperature=0.0, top_p=1.0, seed=0)  # fmt: skip
    graph.add("SaveImageTextDataSetToFolder", images=[images, 0], texts=[answer, 0], folder_name="captioned",
              filename_prefix="image", mode="overwrite")  # fmt: skip
    server.run(graph)
    saved = server.base / "output" / "captioned"
    assert len(list(saved.glob("*.png"))) == 3 and len(list(saved.glob("*.txt"))) == 3
