"""What a user wrote in a card stays, whatever remerge writes beside it."""

from __future__ import annotations

import re

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import example, given
from hypothesis import strategies as st

from remerge.artefacts.card.escaping import block, code, prose
from remerge.artefacts.card.front_matter import read_keys
from remerge.artefacts.card.updating import BEGIN, END, composed, merged, read_card

OURS = {"library_name": "transformers", "tags": ["remerge", "merge"], "license": "mit"}
LINES = ["Merged.", "", "- method: sum"]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
PIECES = st.lists(
    st.one_of(
        TEXTS,
        st.sampled_from(
            [BEGIN, END, "\n", "\r\n", "---", "---\n", "```", "# title", "a: b", "<!--", "-->", " "]
        ),
    ),
    max_size=12,
).map("".join)
VALUES = st.one_of(TEXTS, st.lists(TEXTS, max_size=4), st.integers(), st.booleans(), st.none())
METADATA = st.dictionaries(st.sampled_from([*OURS, "mine", "inference", "datasets"]), VALUES)


def outside(text: str) -> tuple[str, str]:
    card = read_card(text)
    assert card.after is not None
    return card.before, card.after


@given(PIECES)
@example(f"{BEGIN}\nmy own words after an end that was deleted\n")
@example(f"---\na: 1\n---\n{END}\n{BEGIN}\nx")
@example("---\nno mapping\n---\nrest")
@example("\ufeff---\r\na: 1\r\n---\r\n# Mine\r\n")
def test_text_stays_and_a_second_update_changes_nothing(text: str):
    try:
        before = read_card(text)
    except ValueError:
        return
    once = composed(text, "t", OURS, LINES, {})
    twice = composed(once, "t", OURS, LINES, {})
    assert once == twice
    head, tail = outside(once)
    if text.strip():
        assert tail == (before.after or tail)
        assert tail.strip() == (before.after or "").strip()
        # Where there were no metadata, these come before; an added block stands after a free line.
        assert head.endswith(before.before) or head.rstrip("\r\n").endswith(
            before.before.rstrip("\r\n")
        )
        assert len(head) <= len(before.before) + len("\r\n---\r\n\r\n\r\n\r\n")
    other = composed(once, "t", OURS, ["Something else."], {})
    assert outside(other) == (head, tail)


@given(METADATA, METADATA, METADATA)
def test_metadata_of_the_user_win(there: dict, wrote: dict, new: dict):
    found = merged(there, wrote, new)
    for key, value in there.items():
        if key not in wrote or (value != wrote[key] and not isinstance(value, list)):
            assert found[key] == value
    for key in set(wrote) - set(there):
        assert key not in found
    # What was ours is ours to change, and to take back.
    for key in there.keys() & wrote.keys():
        if there[key] == wrote[key]:
            assert (found[key] == new[key]) if key in new else (key not in found)


@given(METADATA)
def test_the_users_yaml_keeps_its_values(metadata: dict):
    text = f"---\n# mine\n{yaml.safe_dump(metadata)}---\nhello\n"
    if not metadata:
        text = "---\n# mine\nx: 1\n---\nhello\n"
    found = yaml.safe_load(re.split(r"^---$", composed(text, "t", OURS, LINES, {}), flags=re.M)[1])
    for key, value in metadata.items():
        assert found[key] == value
    for key in OURS.keys() - metadata.keys():
        assert found[key] == OURS[key]


def test_comments_and_spelling_of_the_users_metadata_stay():
    text = composed(None, "t", OURS, LINES, {})
    text = text.replace("license: mit", "# ours\nlicense: 'apache-2.0' # asked the lawyers")
    text = text.replace("- merge\n", "- merge\n- 'best'\n\n# more\nmine: {a: 1}\n")
    again = composed(text, "t", OURS | {"tags": ["remerge", "gguf"]}, LINES, {})
    assert "# ours\nlicense: 'apache-2.0' # asked the lawyers\n" in again
    assert "\n\n# more\nmine: {a: 1}\n" in again
    assert ModelCard(again).data.tags == ["remerge", "best", "gguf"]


def test_what_the_user_took_out_stays_out():
    text = composed(None, "t", OURS, LINES, {}).replace("license: mit\n", "")
    again = composed(text, "t", OURS, LINES, {})
    assert ModelCard(again).data.license is None
    assert composed(again, "t", OURS, LINES, {}) == again


def index(name: str, *values: float) -> list:
    task, data = {"type": "text-generation"}, {"type": "x", "name": "x"}
    return [
        {
            "name": name,
            "results": [
                {"task": task, "dataset": data, "metrics": [{"type": "acc", "value": value}]}
                for value in values
            ],
        }
    ]


def test_scores_of_the_user_stay_beside_ours():
    text = composed(None, "t", OURS | {"model-index": index("m", 0.5)}, LINES, {})
    card = ModelCard(text)
    assert card.data.eval_results[0].metric_value == 0.5
    edited = text.replace("  results:\n", "  results:\n" + MINE)
    assert len(ModelCard(edited).data.eval_results) == 2
    again = composed(edited, "t", OURS | {"model-index": index("m", 0.75)}, LINES, {})
    assert {r.metric_value for r in ModelCard(again).data.eval_results} == {0.25, 0.75}
    without = composed(again, "t", OURS, LINES, {})
    assert {r.metric_value for r in ModelCard(without).data.eval_results} == {0.25}
    assert "model-index" not in composed(text, "t", OURS, LINES, {}).partition(BEGIN)[0]


MINE = """\
  - task:
      type: text-generation
    dataset:
      name: mine
      type: mine
    metrics:
    - type: acc
      value: 0.25
"""


@pytest.mark.parametrize("broken", ["a: [1", "a: *b", "\t- x: y: z", "a: \x07", "[" * 5000])
def test_metadata_that_cannot_be_read_are_refused(broken: str):
    with pytest.raises(ValueError):
        composed(f"---\n{broken}\n---\nmine\n", "t", OURS, LINES, {})


@given(PIECES)
@example("x\n<!-- remerge:end -->\n```\n| a |")
@example("a --> b")
def test_hostile_names_stay_inside(name: str):
    lines = [f"# {prose(name)}", f"| {code(name)} | {prose(name)} |", *block(name, "sh")]
    memory = {"name": name}
    text = composed(None, "t", OURS, lines, memory)
    head, tail = outside(text)
    assert (head, tail) == ("\n---\n\n# t\n\n", "\n")
    assert read_card(text).memory["name"] == name
    assert composed(text, "t", OURS, lines, memory) == text
    assert ModelCard(text).data.to_dict() == OURS
    # One row, whatever the name: no cell more.
    (row,) = [line for line in text.split("\n") if line.startswith("| ")][:1]
    assert row.count("|") == 3
    assert text.count("-->") == 3


def test_anyones_card_is_read_in_part_and_bounded():
    keys = frozenset({"license", "tags"})
    many = "".join(f"  - metric: {i}\n" for i in range(40_000))
    text = f"---\nmodel-index:\n{many}license: mit\nbroken: [\ntags: [a]\n---\n"
    assert read_keys(text, keys) == ({"license": "mit", "tags": ["a"]}, None)
    found, note = read_keys("---\nlicense: [\n---\n", keys)
    assert found == {}
    assert "not valid YAML" in str(note)
    assert read_keys("---\nlicense: !!python/object:os.system x\n---\n", keys)[0] == {}
    assert read_keys(f"---\nlicense: {'[' * 9000}\n---\n", keys)[0] == {}
    assert read_keys(f"---\na{' ' * 1_000_000}b\n---\n", keys) == ({}, None)
