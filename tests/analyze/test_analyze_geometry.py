"""The geometry of a pair's update: its medians, files and verb, for both kinds of pair."""

import json
from dataclasses import asdict, fields
from statistics import median

import pytest
from PIL import Image

from rlvr_decode.__main__ import main
from rlvr_decode.analyze.geometry import COLUMNS, geometry_report, summarise, table
from rlvr_decode.geometry import MatrixGeometry, analyze_geometry
from rlvr_decode.matrices import LINEAR_LAYERS
from rlvr_decode.pair import write_pair
from rlvr_decode.testing import make_adapter, make_checkpoints


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    directory = tmp_path_factory.mktemp("adapter")
    base, _ = make_checkpoints(directory)
    low, _ = make_adapter(directory, base, rank=3)
    return write_pair(directory, name="low", base=base, rlvr=low)


def matrix(name, **measures):
    values = {field.name: None for field in fields(MatrixGeometry)}
    return MatrixGeometry(**values | {"name": f"model.layers.{name}.weight"} | measures)


def test_medians_by_hand():
    summary = summarise(
        [
            matrix("0.mlp.up_proj", relative_norm=1.0, effective_rank=4.0),
            matrix("1.mlp.up_proj", relative_norm=3.0, effective_rank=None),
            matrix("0.self_attn.q_proj", relative_norm=9.0, effective_rank=8.0),
        ]
    )
    assert list(summary) == ["q_proj", "up_proj", "all"]
    assert summary["up_proj"]["relative_norm"] == 2 and summary["all"]["relative_norm"] == 3
    assert summary["up_proj"]["effective_rank"] == 4 and summary["all"]["effective_rank"] == 6
    assert summary["all"]["sparsity"] is None
    lines = table(summary).splitlines()
    assert len(lines) == 5 and {line.count("|") for line in lines} == {len(COLUMNS) + 2}
    assert lines[3].startswith("| up_proj | 2.00e+00 | 4.0 | – |")


def test_the_report_is_that_of_every_matrix(adapter, tmp_path):
    summary = geometry_report(adapter, tmp_path / "out", top=4, fraction=0.2)
    written = json.loads((tmp_path / "out" / "geometry.json").read_text())
    exact = analyze_geometry(adapter.base.fetch(), adapter.rlvr.fetch(), top=4, fraction=0.2)
    assert written["matrices"] == [asdict(each) | {"shape": list(each.shape)} for each in exact]
    assert written["medians"] == summary and list(summary) == [*LINEAR_LAYERS, "all"]
    assert (written["top"], written["fraction"], len(exact)) == (4, 0.2, 21)
    of_up = [each.sparsity for each in exact if "up_proj" in each.name]
    assert summary["up_proj"]["sparsity"] == median(of_up)
    # The adapter is of rank 3, so the update spreads over no more.
    assert all(1 < each.effective_rank < 3.01 for each in exact)
    with Image.open(tmp_path / "out" / "geometry.png") as image:
        assert min(image.size) > 500 and len(image.convert("L").getcolors()) > 50


def test_the_verb_needs_no_task(adapter, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["analyze", str(adapter.directory), "--geometry", "-o", str(out)]) == 0
    told = capsys.readouterr().out
    norm = json.loads((out / "geometry.json").read_text())["medians"]["all"]["relative_norm"]
    assert "| down_proj |" in told and f"| all | {norm:.2e} |" in told
    assert str(out / "geometry.png") in told
    with pytest.raises(SystemExit):
        main(["analyze", "absent", "--geometry", "-o", str(out)])
    assert "no pair 'absent'" in capsys.readouterr().err
