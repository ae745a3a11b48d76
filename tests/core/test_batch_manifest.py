"""Manifests of batch runs, seeds, and groups."""

import json

import pytest
from PIL import Image

import janus_core
from janus_core.batch.groups import make_groups, parse_shard, shard_of
from janus_core.batch.manifest import Defaults, read_outputs
from janus_core.batch.outputs import BatchError, Output, image_seed
from janus_core.checkpoint import read_checkpoint
from janus_core.prompt import PromptEncoder

ROWS = [
    {"id": "first", "prompt": "a cat, asleep", "seed": 7, "count": 2, "settings": {"guidance": 3}},
    {"id": "second", "prompt": 'a "dog"', "negative": "a cat", "out": "dogs/a.png", "temperature": 0.5},
]


def read(path, task="generate", limit=None, **defaults):
    return read_outputs(path, task, Defaults(**defaults), limit)


@pytest.fixture
def manifest(tmp_path):
    """Writes lines or rows to a file of a suffix, and returns its path."""

    def write(suffix, content):
        path = tmp_path / f"jobs{suffix}"
        if suffix == ".jsonl":
            content = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in content)
        path.write_text(content, encoding="utf-8")
        return path

    return write


def test_json_lines(manifest, tmp_path):
    outputs, folder = read(manifest(".jsonl", ROWS), count=1)
    assert [output.path for output in outputs] == ["first_000.png", "first_001.png", "dogs/a.png"]
    assert [output.seeds for output in outputs] == [(7,), (8,), (image_seed(0, "second", 0),)]
    assert outputs[0].settings == {"guidance": 3} and outputs[2].settings == {"temperature": 0.5}
    assert outputs[2].negative == "a cat" and folder == tmp_path


def test_csv_and_parquet_give_what_json_lines_give(manifest, tmp_path):
    expected, _ = read(manifest(".jsonl", ROWS))
    text = (
        "id,prompt,seed,count,settings,negative,out,temperature\r\n"
        'first,"a cat, asleep",7,2,"{""guidance"": 3}",,,\r\n'
        'second,"a ""dog""",,,,a cat,dogs/a.png,0.5\r\n'
    )
    assert read(manifest(".csv", text))[0] == expected
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{**row, "settings": None} for row in ROWS]
    rows[0]["guidance"] = 3
    names = sorted({name for row in rows for name in row})
    table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
    parquet.write_table(table, tmp_path / "jobs.parquet")
    assert read(tmp_path / "jobs.parquet")[0] == expected


def test_a_text_file_is_a_prompt_per_line(manifest):
    outputs, _ = read(manifest(".txt", "a cat\n\n  a dog\n"), count=2, seed=5)
    assert [(output.path, output.prompt) for output in outputs] == [
        ("000000_000.png", "a cat"),
        ("000000_001.png", "a cat"),
        ("000001_000.png", "a dog"),
        ("000001_001.png", "a dog"),
    ]
    assert len({output.seeds for output in outputs}) == 4
    assert len(read(manifest(".txt", "a cat\n\n  a dog\n"), limit=1)[0]) == 1


def test_a_folder_of_images_gives_captions_beside_them(tmp_path):
    for name in ("b.png", "a.jpg"):
        Image.new("RGB", (20, 20)).save(tmp_path / name)
    outputs, folder = read(tmp_path, "describe", question="What is it?")
    assert [(output.path, output.images) for output in outputs] == [("a.txt", ("a.jpg",)), ("b.txt", ("b.png",))]
    assert folder == tmp_path


def test_a_seed_depends_on_base_seed_job_and_number_alone():
    assert image_seed(0, "cat", 0) == 8588326278330674642  # a change would change everybody's images
    seeds = {image_seed(base, job, k) for base in (0, 1) for job in ("a", "b") for k in (0, 1)}
    assert len(seeds) == 8 and all(0 <= seed < 2**64 for seed in seeds)


@pytest.mark.parametrize(
    ("lines", "part"),
    [
        (["{"], "job 1 is not valid JSON"),
        ([{"prompt": 3}], "job 1: prompt is 3"),
        ([{"prompt": "a"}, {"id": "x"}], "job 2 has no prompt"),
        ([{"prompt": "a", "steeps": 3}], "steeps"),
        ([{"prompt": "a", "settings": {"steeps": 3}}], "steeps"),
        ([{"prompt": "a", "seed": -1}], "seed is -1"),
        ([{"prompt": "a", "out": "../x.png"}], "output folder"),
        ([{"prompt": "a", "out": "/x.png"}], "output folder"),
        ([{"prompt": "a", "out": "C:\\x.png"}], "output folder"),
        ([{"prompt": "a", "id": "a/../../b"}], "output folder"),
        ([{"prompt": "a", "id": "x" * 300}], "output folder"),
        ([{"prompt": "a", "out": "x.jpg"}], "must end in .png"),
        ([{"prompt": "a", "id": "x"}, {"prompt": "b", "id": "x"}], "both write x.png"),
        ([], "empty"),
    ],
)
def test_a_job_that_cannot_be_used_is_named(manifest, lines, part):
    with pytest.raises(BatchError, match="(?s)" + part.replace("\\", "\\\\")):
        read(manifest(".jsonl", lines))


def test_files_that_are_no_manifest(tmp_path, manifest):
    for path in (tmp_path / "none.jsonl", tmp_path, tmp_path / "x.xlsx"):
        with pytest.raises(BatchError):
            read(path)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(BatchError):
        read(tmp_path / "bad.parquet")
    with pytest.raises(BatchError, match="cells"):
        read(manifest(".csv", "id,prompt\n1,a,b\n"))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("prompt\n" + "x" * 200_000, "cannot be read as CSV.*field limit"),
        ('prompt\n"a cat\n' + "a dog\n" * 30_000, "cannot be read as CSV.*field limit"),
        ("prompt,settings\na," + "[" * 100_000, "settings is .*an object"),
    ],
    ids=["long cell", "open quote", "nested cell"],
)
def test_csv_that_cannot_be_used(manifest, text, part):
    with pytest.raises(BatchError, match=part):
        read(manifest(".csv", text))


def test_parquet_that_python_cannot_hold(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    time = pyarrow.array([10**15], pyarrow.timestamp("s"))  # in the year 31,690,708
    parquet.write_table(pyarrow.table({"prompt": ["a cat"], "time": time}), tmp_path / "jobs.parquet")
    with pytest.raises(BatchError, match="cannot be read as Parquet"):
        read(tmp_path / "jobs.parquet")


def test_groups_are_of_one_setting_and_ordered_by_length(golden):
    prompts = PromptEncoder.of(read_checkpoint(golden("ar-a").folder))
    texts = ["a " + "very " * (k % 5) + "red circle" for k in range(11)]
    outputs = [
        Output(f"{k}.png", str(k), "generate", text, (k,), settings={"guidance": k % 2}) for k, text in enumerate(texts)
    ]
    groups = make_groups(outputs, prompts, 3)
    assert sorted(output.path for group in groups for output in group) == sorted(output.path for output in outputs)
    for group in groups:
        assert len(group) <= 3 and len({output.settings["guidance"] for output in group}) == 1
    lengths = [[len(output.prompt) for output in group] for group in groups[:2]]
    assert max(lengths[0]) <= min(lengths[1])
    shards = [shard_of(groups, k, 4) for k in range(4)]
    assert sorted(map(str, groups)) == sorted(str(group) for shard in shards for group in shard)
    grids = [Output(f"{k}.png", str(k), "generate", "x", (1, 2, 3, 4)) for k in range(3)]
    assert [len(group) for group in make_groups(grids, prompts, 2)] == [1, 1, 1]
    assert [len(group) for group in make_groups(grids, prompts, 9)] == [2, 1]


@pytest.mark.parametrize("text", ["1", "2/2", "-1/2", "a/b", "1/0", ""])
def test_a_shard_that_does_not_exist(text):
    with pytest.raises(BatchError, match="i/n"):
        parse_shard(text)
    assert issubclass(BatchError, janus_core.JanusError)
