"""The page as text: what it says, whose words it escapes, and where it is written."""

from __future__ import annotations

import json
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

import remerge
from remerge.artefacts.manifest import read_manifest
from remerge.cli import group
from remerge.errors import BadInput, UsageError
from remerge.validation.report.facts import gather
from remerge.validation.report.rendering import render
from tests.validation.report import made


class Page(HTMLParser):
    """Tags, attributes and words of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


def page(output: Path, *formats: Path) -> Page:
    return Page(render(gather(output, formats)))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return made.merged(tmp_path)


def test_from_the_manifest_alone(out: Path):
    found = page(out)
    manifest = read_manifest(out)
    assert "not compared" in found.words
    assert manifest.merge_key in found.words
    for record in (*manifest.outputs, *manifest.base.files, *manifest.adapters[0].files):
        assert record.sha256 in found.words
    assert "remerge merge base sort -o merged" in found.words
    cells = [a for tag, a in found.tags if tag == "path" and "data-cell" in a]
    assert len(cells) == 2 * manifest.tensors["touched"]
    assert "a sample of every tensor" in found.words


def test_figures_of_a_comparison(out: Path, tmp_path: Path):
    made.compared(out, made.figures())
    found = page(out, made.write_table(tmp_path / "formats.json"))
    for words in (
        "98.0% [95.0%, 100.0%]",
        "−0.020 [−0.040, −0.020]",
        "3.10e-05",
        "3.412",
        "3.413",
        "≥ 3.10e-05",
        "acc_norm",
        "layer 2, block3.part_3",
        "Proposal, proven to pass",
        "PEFT",
        "712.00 MB",
        "gguf:Q4_K_M",
        "no module fits <b>",
        "2 tensors fail, crossed below",
        "ab" * 32,
    ):
        assert words in found.words, words
    rows = {cells[0]: cells[1:] for cells in _rows(render(gather(out, [])))}
    assert rows["model.layers.2.block3.part_3.weight"][4] == "0.00%"
    assert rows["model.layers.2.block3.part_3.weight"][-1] == "fail"
    assert rows["model.layers.2.block2.part_2.weight"][-1] == "hold"


def _rows(text: str) -> list[list[str]]:
    rows = re.findall(r"<tr data-row.*?</tr>", text, re.S)
    return [re.findall(r"<t[hd][^>]*>(?:<bdi>)?(.*?)(?:</bdi>)?</t[hd]>", row) for row in rows]


def test_every_figure_has_its_table(out: Path, tmp_path: Path):
    """In its own section, after it."""
    made.compared(out, made.figures())
    text = render(gather(out, [made.write_table(tmp_path / "formats.json")]))
    sections = re.findall(r"<section.*?</section>", text, re.S)
    drawn = [section for section in sections if "<figure" in section]
    assert len(drawn) == 4
    for section in drawn:
        assert section.rindex("<figure") < section.rindex("<table")


def test_the_newest_comparison_counts_and_others_are_history(out: Path):
    made.compared(out, made.figures(started="2026-11-22T10:00:00+00:00", verdict="passed"))
    made.compared(out, made.figures(started="2026-11-21T10:00:00+00:00", differing=()))
    found = page(out)
    assert "passedcompared 2026-11-22 10:00 UTC" in re.sub(r"\s{2,}", "", found.words)
    history = found.words[found.words.rindex("History") :]
    assert history.index("2026-11-22") < history.index("2026-11-21")


def test_a_pass_of_other_bytes_is_no_pass(out: Path):
    made.compared(out, made.figures(verdict="passed"), same_bytes=False)
    result = remerge.report(out)
    assert result.verdict == "failed"
    assert "passed, but with other bytes" in page(out).words


def test_figures_of_weights_are_the_newest_there_are(out: Path):
    made.compared(out, made.figures(started="2026-11-20T10:00:00+00:00"))
    made.compared(out, made.figures(started="2026-11-21T10:00:00+00:00", weights=None))
    assert "From the comparison of 2026-11-20 10:00 UTC" in page(out).words


def test_conflicts_are_those_of_all_modules_where_the_adapters_are_found(tmp_path: Path):
    out = made.merged(tmp_path, "sort", "dates")
    grid = gather(out, []).grid
    assert grid is not None and not grid.worst_conflicts_only
    assert all(cell.meeting is not None for cell in grid.cells)
    assert set(_measures(out)) == {"delta", "kept", "conflict"}


def test_else_only_the_worst_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = made.merged(tmp_path, "sort", "dates")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "elsewhere"))
    grid = gather(out, []).grid
    assert grid is not None and grid.worst_conflicts_only
    assert sum(cell.meeting is not None for cell in grid.cells) == 5
    assert "Only the worst modules of every pair are known" in page(out).words


def test_an_adapter_that_was_changed_is_not_asked(tmp_path: Path, inputs: Path):
    import shutil

    places = [tmp_path / "one", tmp_path / "two"]
    for place, task in zip(places, ("sort", "dates"), strict=True):
        shutil.copytree(made.EXAMPLES / "adapters" / task, place)
    remerge.merge(made.EXAMPLES / "base", places, tmp_path / "out")
    shutil.copy(places[0] / "adapter_model.safetensors", places[1])
    grid = gather(tmp_path / "out", []).grid
    assert grid is not None and grid.worst_conflicts_only


def _measures(out: Path) -> list[str]:
    return [
        a["data-measure"] or ""
        for tag, a in page(out).tags
        if tag == "figure" and "data-measure" in a
    ]


def test_older_manifests_have_no_norms(out: Path):
    file = out / "remerge.json"
    document = json.loads(file.read_text())
    for record in document["retention"]["tensors"].values():
        del record["delta"]
    file.write_text(json.dumps(document))
    assert _measures(out) == ["kept"]


def test_hostile_texts_stay_texts(out: Path):
    made.compared(out, made.hostile())
    text = render(gather(out, []))
    found = Page(text)
    tags = [tag for tag, _ in found.tags]
    assert tags.count("script") == 1 and tags.count("style") == 1 and "img" not in tags
    assert not any(name.startswith("on") for _, a in found.tags for name in a)
    assert not any(c in text for c in "\x00\x1b\x7f\u202e\u2066")
    assert made.HOSTILE["long"] in found.words
    assert "{{ 7 * 7 }}" in found.words
    for name in ("script", "image", "style", "comment"):
        assert made.HOSTILE[name] in found.words, name
    # Two names that look alike when shown are two rows.
    assert "sa␀me" in found.words


def test_figures_that_are_not_finite_are_told(out: Path):
    """A broken artefact gives such; they must not stop the report on it."""
    logits = made.figures().logits[0].model_copy(update={"kl_mean": math.nan, "kl_max": math.inf})
    broken = made.weights({"model.layers.0.a.weight": made.tensor(kept=math.nan, worst=math.inf)})
    made.compared(out, made.figures(logits=(logits,), weights=broken, seconds=0.0))
    found = page(out)
    assert found.words.count("not finite") >= 4
    assert "1 tensor fails, crossed below" in found.words


def test_nothing_is_fetched(out: Path):
    """No address but those of namespaces, and a policy that would forbid any."""
    made.compared(out, made.figures())
    text = render(gather(out, []))
    found = Page(text)
    for tag, attributes in found.tags:
        for name in ("src", "srcset", "data", "poster", "xlink:href", "action"):
            assert name not in attributes, tag
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert (attributes.get("href") or "#").startswith("#")
    assert (
        "url(" not in text
        and "@import" not in text
        and "http" not in text.replace("http-equiv", "")
    )
    (policy,) = [a for _, a in found.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert (policy["content"] or "").startswith("default-src 'none'")


def test_the_same_facts_give_the_same_page(out: Path):
    made.compared(out, made.figures())
    assert render(gather(out, [])) == render(gather(out, []))


def test_where_it_is_written(out: Path, tmp_path: Path):
    written = remerge.report(out)
    assert written.path == tmp_path / "merged-report.html"
    assert written.nbytes == written.path.stat().st_size and written.verdict is None
    before = (tmp_path / "merged" / "remerge.json").read_bytes()
    remerge.report(out)  # a report is replaced
    assert sorted(p.name for p in tmp_path.iterdir()) == ["merged", "merged-report.html"]
    assert (tmp_path / "merged" / "remerge.json").read_bytes() == before


def test_what_is_no_report_is_kept(out: Path, tmp_path: Path):
    mine = tmp_path / "mine.html"
    mine.write_text("<!DOCTYPE html>")
    with pytest.raises(UsageError, match="is no report"):
        remerge.report(out, mine)
    assert mine.read_text() == "<!DOCTYPE html>"
    remerge.report(out, mine, overwrite=True)
    assert "remerge report" in mine.read_text()
    with pytest.raises(UsageError, match="inside"):
        remerge.report(out, out / "report.html")
    with pytest.raises(UsageError, match="is a directory"):
        remerge.report(out, tmp_path)
    with pytest.raises(UsageError, match="no directory"):
        remerge.report(out, tmp_path / "none" / "x.html")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"rows": []}', '"x"', "[" * 100_000])
def test_what_is_no_table_of_formats(out: Path, tmp_path: Path, content: str):
    file = tmp_path / "formats.json"
    file.write_text(content)
    with pytest.raises(UsageError, match="no table of formats"):
        remerge.report(out, formats=[file])
    assert not (tmp_path / "merged-report.html").exists()


def test_a_table_that_is_not_there(out: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="cannot be read"):
        remerge.report(out, formats=[tmp_path / "none.json"])


def test_what_is_no_output(tmp_path: Path):
    with pytest.raises(BadInput, match="nothing at"):
        remerge.report(tmp_path / "none")
    with pytest.raises(BadInput, match="neither a manifest nor a comparison"):
        remerge.report(tmp_path)
    made.compared(tmp_path, made.figures())
    assert remerge.report(tmp_path, tmp_path.parent / "r.html").verdict == "failed"


def test_a_combined_adapter_is_no_model(tmp_path: Path):
    adapters = [made.EXAMPLES / "adapters" / task for task in ("sort", "dates")]
    remerge.combine(made.EXAMPLES / "base", adapters, tmp_path / "both")
    with pytest.raises(BadInput, match="not a model"):
        remerge.report(tmp_path / "both")


def test_a_file_of_one_engine(tmp_path: Path):
    """A GGUF's manifest and comparisons lie beside it; its bytes are not looked at."""
    out = made.merged(tmp_path)
    manifest = json.loads((out / "remerge.json").read_text())
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    for key in ("retention", "conflicts", "formats", "written"):
        manifest.pop(key)
    manifest |= {
        "format": "remerge-engine/1",
        "engine": "llama.cpp",
        "origin": {"base": "base", "adapters": ["sort"]},
        "reproducible": "same-stack",
        "tensors": [{"name": "blk.0.attn_q.weight", "shape": [128, 128], "type": "Q4_K"}],
        "bits_per_weight": 4.93,
        "recipe": manifest["recipe"] | {"format": "gguf", "form": {"file_type": "Q4_K_M"}},
    }
    (tmp_path / "model.gguf.remerge.json").write_text(json.dumps(manifest))
    found = page(file)
    assert "remerge merge base sort -o model.gguf --to gguf:Q4_K_M" in found.words
    assert "llama.cpp, 4.93 bits a weight" in found.words
    assert "No tensor was measured" in found.words
    made.compared(file, made.figures(format="Q4_K_M"))
    written = remerge.report(file)
    assert written.path.name == "model.gguf-report.html" and written.verdict == "failed"


def test_the_command(out: Path):
    done = CliRunner().invoke(group, ["report", str(out), "--json"])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["verdict"] is None and Path(document["report"]).is_file()
    done = CliRunner().invoke(group, ["report", str(out)])
    assert "not compared" in done.stdout


@pytest.mark.parametrize("module", ["vl_convert", "jinja2"])
def test_without_the_extra(out: Path, monkeypatch: pytest.MonkeyPatch, module: str):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageError, match=r"remerge\[report\]"):
        remerge.report(out)
