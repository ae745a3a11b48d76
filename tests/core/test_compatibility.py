"""The table of docs/stock-nodes.md, written from the results of tests."""

import compatibility

XML = """<testsuites><testsuite>
<testcase name="test_sampler[euler]"/>
<testcase name="test_sampler[a_cfg_pp]"><properties><property name="condition" value="cfg 1"/></properties></testcase>
<testcase name="test_sampler[b_cfg_pp]"><properties><property name="condition" value="cfg 1"/></properties></testcase>
<testcase name="test_sampler[new]"><failure/></testcase>
<testcase name="test_sampler[gpu]"><skipped/></testcase>
<testcase name="test_model_node_without_effect[PAG]"/>
<testcase name="test_model_node_without_effect[FreeU]">
<properties><property name="effect" value="fails"/></properties></testcase>
<testcase name="test_text_generate"/>
<testcase name="test_previews_during_sampling"><failure/></testcase>
</testsuite></testsuites>"""


def test_columns_tell_right_from_conditional_and_without_effect(tmp_path):
    (tmp_path / "results.xml").write_text(XML)
    table = compatibility.table(compatibility.results(tmp_path / "results.xml")).splitlines()
    rows = {row[1]: row[2:5] for row in ([cell.strip() for cell in line.split("|")] for line in table[2:])}
    assert rows["KSampler: samplers (JanusFlow)"] == ["euler", "with cfg 1: a_cfg_pp, b_cfg_pp", "new (wrong)"]
    assert rows["Model nodes for layers that JanusFlow lacks"] == ["", "", "PAG, FreeU (fails)"]
    assert rows["Chains"] == ["Generate Text with an image", "", "Live previews (wrong)"]


def test_every_row_belongs_to_a_test():
    source = "".join(path.read_text(encoding="utf-8") for path in compatibility.TESTS.glob("test_*.py"))
    for function in (*compatibility.GROUPS, *compatibility.SINGLE):
        assert f"def {function}(" in source, function
