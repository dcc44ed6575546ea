"""Several adapters in one merge, against PEFT: what each does alone, and what it does with both."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import remerge
from remerge.errors import BadInput, Unsupported, UsageError
from tests import tiny
from tests.merging import adapted
from tests.merging.adapted import VOCABULARY, Tensors

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
ROWS = [3, 96, 17]
KINDS: Mapping[str, PeftConfig] = {
    "lora": LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "k_proj"]),
    # PEFT saves copies of embedding and head beside it, because a target is an embedding.
    "rslora": LoraConfig(
        r=5,
        use_rslora=True,
        rank_pattern={"down_proj": 2},
        target_modules=["q_proj", "down_proj", "embed_tokens"],
    ),
    "dora": LoraConfig(r=2, use_dora=True, target_modules=["q_proj", "v_proj"]),
    "saved": LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "tokens": LoraConfig(
        r=1, target_modules=["k_proj"], trainable_token_indices={"embed_tokens": ROWS}
    ),
    "loha": LoHaConfig(r=2, target_modules=["q_proj", "up_proj"]),
    "ia3": IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    ),
    "head": LoraConfig(r=2, target_modules=["lm_head", "o_proj"]),
}
WEIGHTS = {
    "lora": 0.5,
    "rslora": -1.25,
    "dora": 2.0,
    "saved": 0.75,
    "tokens": 1.0,
    "loha": -0.3,
    "ia3": 0.6,
    "head": 1.5,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in float64 and an adapter of every kind."""
    root = tmp_path_factory.mktemp("several")
    adapted.write_base(root / "base")
    for seed, (kind, config) in enumerate(KINDS.items()):
        adapted.write_adapter(root / "base", root / kind, config, seed)
    return root


@pytest.fixture(scope="module")
def base(place: Path) -> Tensors:
    return adapted.state(place / "base")


@pytest.fixture(scope="module")
def alone(place: Path) -> Mapping[str, Tensors]:
    """The base with each adapter, as PEFT merges it in float64."""
    return {
        kind: adapted.merged_by_peft(place / "base", [place / kind], torch.float64)
        for kind in KINDS
    }


def opened(place: Path, kinds: Sequence[str], **options: Any) -> Tensors:
    return adapted.read(
        remerge.open_merged(place / "base", [place / kind for kind in kinds], **options)
    )


def assert_close(found: Tensors, expected: Tensors, within: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        worst = (found[name].double() - tensor).abs().max().item()
        assert worst <= within, f"{name}: {worst}"


def summed(base: Tensors, alone: Mapping[str, Tensors], weights: Mapping[str, float]) -> Tensors:
    """``W + sum_i w_i (merged_i - W)``, where what an adapter brings whole has no weight."""
    total: Tensors = {}
    for name, tensor in base.items():
        total[name] = tensor.clone()
        for kind, weight in weights.items():
            change = alone[kind][name] - tensor
            if (kind, name) == ("saved", HEAD):
                total[name] += change
            elif (kind, name) == ("tokens", EMBEDDING):
                total[name][ROWS] += change[ROWS]
            else:
                total[name] += weight * change
    return total


# --- sums of every kind --------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", list(itertools.combinations(KINDS, 2)), ids="+".join)
def test_two_of_all_kinds(place: Path, base: Tensors, alone: Any, kinds: tuple[str, str]):
    weights = {kind: WEIGHTS[kind] for kind in kinds}
    found = opened(place, kinds, weights=list(weights.values()))
    assert_close(found, summed(base, alone, weights))


def test_all_kinds_at_once(place: Path, base: Tensors, alone: Any):
    expected = summed(base, alone, WEIGHTS)
    assert_close(opened(place, list(WEIGHTS), weights=list(WEIGHTS.values())), expected)
    backwards = dict(reversed(WEIGHTS.items()))
    assert_close(opened(place, list(backwards), weights=list(backwards.values())), expected)


def test_weights_of_one_and_of_none(place: Path, base: Tensors, alone: Any):
    ones = dict.fromkeys(("lora", "dora", "loha"), 1.0)
    assert_close(opened(place, list(ones)), summed(base, alone, ones))
    half = dict.fromkeys(ones, 0.5)
    assert_close(opened(place, list(half), weights=0.5), summed(base, alone, half))
    mean = dict.fromkeys(ones, 1 / 3)
    assert_close(opened(place, list(mean), method="linear"), summed(base, alone, mean))


def test_a_mean_of_nothing_is_refused(place: Path):
    with pytest.raises(UsageError, match="the sum of the weights, which is zero"):
        opened(place, ["lora", "dora"], method="linear", weights=[1, -1])


def test_the_same_adapter_twice(place: Path, base: Tensors, alone: Any):
    found = opened(place, ["dora", "dora"], weights=[0.75, 0.5])
    assert_close(found, summed(base, alone, {"dora": 1.25}))
    # What both bring whole is the same.
    found = opened(place, ["saved", "saved"], weights=[1.0, 1.0])
    assert torch.equal(found[HEAD], alone["saved"][HEAD])
    found = opened(place, ["lora", "lora"], weights=[1.0, -1.0])
    assert_close(found, base)


def test_a_weight_of_zero_takes_no_part(place: Path, alone: Any, tmp_path: Path):
    (tmp_path / "saved").symlink_to(place / "saved")
    found = opened(place, ["lora", "saved", "ia3"], weights=[1.0, 0.0, 0.0])
    assert_close(found, alone["lora"])
    for method in ("linear", "ties", "sequential"):
        found = opened(place, ["lora", "saved"], weights=[1.0, 0.0], method=method)
        assert_close(found, alone["lora"])
    plan = remerge.plan(place / "base", [place / "lora", place / "saved"], weights=[1, 0])
    assert "saved has a weight of zero: it takes no part." in plan.notes
    plan = remerge.plan(place / "base", place / "saved", weights=0)
    assert not plan.touched


def test_the_tokenizer_of_a_weight_of_zero_stays(place: Path, tmp_path: Path):
    shutil.copytree(place / "lora", tmp_path / "lora")
    (tmp_path / "lora" / "tokenizer.json").write_text("{}")
    both = [tmp_path / "lora", place / "dora"]
    named = [
        {f.name for f in remerge.plan(place / "base", both, weights=w).side_files}
        for w in ([1, 1], [0, 1])
    ]
    assert "tokenizer.json" in named[0]
    assert "tokenizer.json" not in named[1]


def test_order_of_the_adapters_of_a_sum(inputs: Path, tmp_path: Path):
    """In bfloat16 the bytes are the same but where two orders of a float64 sum differ at a tie."""
    tiny.write_adapter(tmp_path / "b", seed=11)
    tiny.write_adapter(tmp_path / "c", seed=12)
    three = [inputs / "adapter", tmp_path / "b", tmp_path / "c"]
    for number, order in enumerate(itertools.permutations(range(3))):
        weights = [(0.3, -1.1, 0.7)[n] for n in order]
        out = tmp_path / str(number)
        remerge.merge(inputs / "base", [three[n] for n in order], out, weights=weights)
    files = [tiny.read_tensors(tmp_path / str(number)) for number in range(6)]
    for other in files[1:]:
        for name, tensor in files[0].items():
            differing = (other[name] != tensor).double().mean().item()
            assert differing < 1e-6, name


def test_defaults_leave_one_adapter_as_it_was(inputs: Path):
    base, adapter = inputs / "base", inputs / "adapter"
    plain = remerge.plan(base, adapter).plan_id
    assert remerge.plan(base, [adapter], method="sum", weights=[1.0]).plan_id == plain
    assert remerge.plan(base, [adapter], weights=0.5).plan_id != plain
    assert remerge.plan(base, [adapter], method="linear").plan_id != plain


# --- PEFT with several ---------------------------------------------------------------------------


def merged_cat(place: Path, kinds: Sequence[str], weights: Sequence[float]) -> Tensors:
    """PEFT's own combination, in float64."""
    model: Any = AutoModelForCausalLM.from_pretrained(place / "base", dtype=torch.float64)
    model = PeftModel.from_pretrained(model, place / kinds[0], adapter_name=kinds[0])
    for kind in kinds[1:]:
        model.load_adapter(place / kind, adapter_name=kind)
    model = model.double()
    model.add_weighted_adapter(list(kinds), list(weights), "all", combination_type="cat")
    model.set_adapter("all")
    return dict(model.merge_and_unload(adapter_names=["all"]).state_dict())


def test_sum_is_pefts_cat(place: Path, tmp_path: Path):
    """Of the layers that all adapters have: PEFT 0.21 scales no others right."""
    shutil.copytree(place / "base", tmp_path / "base")
    for number, rank in enumerate((2, 5, 3)):
        config = LoraConfig(r=rank, lora_alpha=4 + number, target_modules=["q_proj", "up_proj"])
        adapted.write_adapter(place / "base", tmp_path / f"{number}", config, number)
    kinds, weights = ["0", "1", "2"], [0.5, 1.75, 0.25]
    assert_close(opened(tmp_path, kinds, weights=weights), merged_cat(tmp_path, kinds, weights))


PAIRS = [("lora", "dora"), ("dora", "lora"), ("dora", "loha"), ("rslora", "lora"), ("ia3", "dora")]


@pytest.mark.parametrize("pair", [*PAIRS, ("lora", "saved"), ("saved", "tokens")], ids="+".join)
def test_sequential_is_one_after_the_other_in_peft(place: Path, pair: tuple[str, str]):
    """In float64 PEFT's two merges round nothing away that shows."""
    expected = adapted.merged_by_peft(
        place / "base", [place / kind for kind in pair], torch.float64
    )
    assert_close(opened(place, pair, method="sequential"), expected)


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float16, torch.float32], ids=str)
def rounded(request: pytest.FixtureRequest, tmp_path_factory: Any) -> tuple[Path, torch.dtype]:
    """A base that rounds, and adapters for it."""
    root = tmp_path_factory.mktemp("rounded")
    adapted.write_base(root / "base", request.param)
    for seed, (kind, config) in enumerate(KINDS.items()):
        adapted.write_adapter(root / "base", root / kind, config, seed, size=0.03)
    return root, request.param


@pytest.mark.parametrize(
    "pair", [("lora", "head"), ("dora", "lora"), ("lora", "dora"), ("saved", "dora")], ids="+".join
)
def test_sequential_rounds_as_peft(rounded: tuple[Path, torch.dtype], pair: tuple[str, str]):
    """In 16 bits nearly every element is PEFT's, the others are the next to it; in float32 PEFT's
    own products are rounded."""
    place, dtype = rounded
    expected = adapted.merged_by_peft(place / "base", [place / kind for kind in pair], dtype)
    found = opened(place, pair, method="sequential")
    if dtype == torch.float32:
        assert_close(found, {name: tensor.double() for name, tensor in expected.items()}, 2e-7)
        return
    apart = torch.cat(
        [
            (found[name].view(torch.int16).int() - tensor.view(torch.int16).int()).abs().view(-1)
            for name, tensor in expected.items()
        ]
    )
    assert int(apart.max()) <= 1
    assert (apart == 0).double().mean() > 0.999


@pytest.mark.parametrize(
    "kinds",
    [
        ("lora", "rslora"),
        ("dora", "lora", "dora"),
        ("lora", "dora"),
        ("saved", "head"),
        ("head", "saved"),
        ("tokens", "rslora"),
        ("ia3", "loha", "tokens"),
    ],
    ids="+".join,
)
def test_sequential_is_merging_twice(
    rounded: tuple[Path, torch.dtype], tmp_path: Path, kinds: Sequence[str]
):
    """To the byte: each adapter onto the output of the merge before."""
    place, _ = rounded
    last = place / "base"
    for number, kind in enumerate(kinds):
        remerge.merge(last, place / kind, tmp_path / str(number))
        last = tmp_path / str(number)
    paths = [place / kind for kind in kinds]
    remerge.merge(place / "base", paths, tmp_path / "once", method="sequential")
    assert files(tmp_path / "once") == files(last)


@pytest.mark.parametrize("kinds", [("ia3", "lora"), ("lora", "ia3"), ("saved", "ia3", "head")])
def test_sequential_rounds_what_an_earlier_adapter_leaves_alone(
    place: Path, tmp_path: Path, kinds: Sequence[str]
):
    """Each merge writes all tensors in the dtype that was asked for."""
    last = place / "base"
    for number, kind in enumerate(kinds):
        remerge.merge(last, place / kind, tmp_path / str(number), dtype="bfloat16")
        last = tmp_path / str(number)
    paths = [place / kind for kind in kinds]
    options: dict[str, Any] = {"method": "sequential", "dtype": "bfloat16"}
    remerge.merge(place / "base", paths, tmp_path / "once", **options)
    assert files(tmp_path / "once") == files(last)
    # An adapter of weight zero is not there: nothing is rounded for it.
    found = opened(place, kinds[:2], weights=[0.0, 1.0], **options)
    alone = adapted.read(remerge.open_merged(place / "base", place / kinds[1], dtype="bfloat16"))
    assert all(torch.equal(found[name], tensor) for name, tensor in alone.items())


def test_sequential_derives_residuals_in_the_output_s_dtype(place: Path, tmp_path: Path):
    """PiSSA's residual is rounded to the dtype of what it is merged into."""
    target = adapted.write_base(tmp_path / "base", torch.bfloat16)
    pissa = LoraConfig(r=3, target_modules=["q_proj", "up_proj"], init_lora_weights="pissa")
    adapted.write_adapter(target, tmp_path / "pissa", pissa, 31)
    for weight in (1.0, 0.6):
        first, second, once = (tmp_path / f"{name}{weight}" for name in ("1", "2", "once"))
        remerge.merge(target, place / "lora", first, dtype="float32")
        remerge.merge(first, tmp_path / "pissa", second, dtype="float32", weights=weight)
        both: list[str | Path] = [place / "lora", tmp_path / "pissa"]
        remerge.merge(
            target, both, once, method="sequential", dtype="float32", weights=[1.0, weight]
        )
        found, expected = tiny.read_tensors(once), tiny.read_tensors(second)
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def files(path: Path) -> dict[str, bytes]:
    return tiny.files_of(path, without=("provenance.json", "remerge.json", "README.md"))


def test_sequential_with_odd_shapes(inputs: Path, tmp_path: Path):
    tiny.write_adapter(tmp_path / "b", seed=21)
    remerge.merge(inputs / "base", inputs / "adapter", tmp_path / "first")
    remerge.merge(tmp_path / "first", tmp_path / "b", tmp_path / "second")
    both = [inputs / "adapter", tmp_path / "b"]
    remerge.merge(inputs / "base", both, tmp_path / "once", method="sequential")
    assert files(tmp_path / "once") == files(tmp_path / "second")


def test_what_a_later_adapter_replaces_is_told(place: Path, alone: Any):
    plan = remerge.plan(place / "base", [place / "head", place / "saved"], method="sequential")
    assert f"saved replaces {HEAD}: what others made of it is lost." in plan.notes
    found = opened(place, ["head", "saved"], method="sequential")
    assert torch.equal(found[HEAD], alone["saved"][HEAD])


# --- values that adapters bring whole ------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two that save the head, and three that train rows of the embedding."""
    root = tmp_path_factory.mktemp("whole")
    (root / "base").symlink_to(place / "base")
    saving = LoraConfig(r=1, target_modules=["v_proj"], modules_to_save=["lm_head"])
    for seed, name in enumerate(("s1", "s2")):
        adapted.write_adapter(place / "base", root / name, saving, 40 + seed)
    for seed, (name, rows) in enumerate({"r1": [1, 2], "r2": [2, 3], "r3": [4, 0]}.items()):
        training = LoraConfig(
            r=1, target_modules=["v_proj"], trainable_token_indices={"embed_tokens": rows}
        )
        adapted.write_adapter(place / "base", root / name, training, 50 + seed)
    return root


@pytest.fixture(scope="module")
def single(whole: Path) -> Mapping[str, Tensors]:
    names = ("s1", "s2", "r1", "r2", "r3")
    return {name: opened(whole, [name]) for name in names}


def test_two_that_replace_the_same_are_refused(whole: Path):
    with pytest.raises(BadInput) as refused:
        remerge.plan(whole / "base", [whole / "s1", whole / "s2"])
    said = str(refused.value)
    assert "lm_head.weight is replaced by two adapters with different values: s1 and s2" in said
    assert "--prefer s1" in said
    with pytest.raises(BadInput, match=r"embed_tokens\.weight is replaced .* r1 and r2"):
        remerge.plan(whole / "base", [whole / "r1", whole / "s1", whole / "r2"])


@pytest.mark.parametrize("prefer", ["s2", "2", "lm_*=s2", "lm_head.weight=2"])
def test_the_preferred_one_stands(whole: Path, single: Any, base: Tensors, prefer: str):
    found = opened(whole, ["s1", "s2"], prefer=[prefer], weights=[0.5, 0.25])
    assert torch.equal(found[HEAD], single["s2"][HEAD])
    v_proj = "model.layers.0.self_attn.v_proj.weight"
    wanted = 0.75 * base[v_proj] * 0 + base[v_proj]
    for name, weight in (("s1", 0.5), ("s2", 0.25)):
        wanted = wanted + weight * (single[name][v_proj] - base[v_proj])
    assert (found[v_proj] - wanted).abs().max() < 1e-12


def test_a_preference_that_names_nothing(whole: Path):
    for prefer, said in (("s3", "no adapter 's3'"), ("x=3", "no adapter '3'")):
        with pytest.raises(UsageError, match=said):
            remerge.plan(whole / "base", [whole / "s1", whole / "s2"], prefer=[prefer])
    with pytest.raises(BadInput, match="two adapters"):
        remerge.plan(whole / "base", [whole / "s1", whole / "s2"], prefer=["embed*=s1"])


def test_the_first_pattern_that_fits_counts(whole: Path, single: Any):
    found = opened(whole, ["s1", "s2"], prefer=["lm_*=1", "s2"])
    assert torch.equal(found[HEAD], single["s1"][HEAD])


def test_rows_of_others_are_all_taken(whole: Path, single: Any, base: Tensors):
    found = opened(whole, ["r1", "r3"])[EMBEDDING]
    assert torch.equal(found[[1, 2]], single["r1"][EMBEDDING][[1, 2]])
    assert torch.equal(found[[0, 4]], single["r3"][EMBEDDING][[0, 4]])
    assert torch.equal(found[3], base[EMBEDDING][3])


@pytest.mark.parametrize(("prefer", "shared"), [("r1", "r1"), ("r2", "r2")])
def test_of_rows_in_common_the_preferred_stands(whole: Path, single: Any, prefer: str, shared: str):
    """And no other row is lost with them."""
    found = opened(whole, ["r1", "r2", "r3"], prefer=[prefer])[EMBEDDING]
    for name, row in (("r1", 1), (shared, 2), ("r2", 3), ("r3", 4), ("r3", 0)):
        assert torch.equal(found[row], single[name][EMBEDDING][row]), row


def rewritten(adapter: Path, to: Path, change: Any) -> Path:
    """A copy of an adapter with other tensors."""
    shutil.copytree(adapter, to)
    tensors = load_file(to / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, to / "adapter_model.safetensors", metadata={"format": "pt"})
    return to


def test_rows_in_common_with_the_same_values(whole: Path, single: Any, tmp_path: Path):
    def agree(tensors: Tensors) -> None:
        key = next(key for key in tensors if "token_adapter" in key)
        other = load_file(whole / "r1" / "adapter_model.safetensors")[key]
        tensors[key][0] = other[1]

    rewritten(whole / "r2", tmp_path / "r2", agree)
    found = adapted.read(remerge.open_merged(whole / "base", [whole / "r1", tmp_path / "r2"]))
    assert torch.equal(found[EMBEDDING][2], single["r1"][EMBEDDING][2])
    assert torch.equal(found[EMBEDDING][3], single["r2"][EMBEDDING][3])


def test_copies_of_the_base_replace_nothing(place: Path, base: Tensors, alone: Any):
    """PEFT saves the embedding beside its LoRA; rows of the other adapter were trained."""
    saved = load_file(place / "rslora" / "adapter_model.safetensors")
    assert any(key.endswith("embed_tokens.base_layer.weight") for key in saved)
    for kinds in (["rslora", "tokens"], ["tokens", "rslora"]):
        wanted = alone["rslora"][EMBEDDING].clone()
        wanted[ROWS] += (alone["tokens"][EMBEDDING] - base[EMBEDDING])[ROWS]
        assert (opened(place, kinds)[EMBEDDING] - wanted).abs().max() < 1e-12


def test_a_copy_that_is_off_by_one_value_was_trained(place: Path, tmp_path: Path):
    """The last value of the last row decides."""

    def train(tensors: Tensors) -> None:
        key = next(key for key in tensors if key.endswith("base_layer.weight"))
        tensors[key][-1, -1] += 1.0

    other = rewritten(place / "rslora", tmp_path / "other", train)
    both = adapted.read(remerge.open_merged(place / "base", [place / "rslora", other]))
    copies = opened(place, ["rslora", "rslora"])
    changed = (both[EMBEDDING] - copies[EMBEDDING]).abs() > 1e-6
    assert changed[-1, -1]
    assert changed.sum() == 1
    with pytest.raises(BadInput, match="different values: other and tokens"):
        remerge.plan(place / "base", [other, place / "tokens"])


# --- vocabularies and tied heads -----------------------------------------------------------------


def test_one_resized_vocabulary(place: Path, alone: Any, tmp_path: Path):
    config = LoraConfig(r=2, target_modules=["q_proj"])
    adapted.write_adapter(place / "base", tmp_path / "grown", config, 60, rows=5)
    both = [tmp_path / "grown", place / "lora"]
    remerge.merge(place / "base", both, tmp_path / "out")
    found = tiny.read_tensors(tmp_path / "out")
    assert found[EMBEDDING].shape[0] == found[HEAD].shape[0] == VOCABULARY + 5
    one = adapted.read(remerge.open_merged(place / "base", tmp_path / "grown"))
    assert torch.equal(found[EMBEDDING], one[EMBEDDING])
    assert json.loads((tmp_path / "out/config.json").read_text())["vocab_size"] == VOCABULARY + 5
    remerge.verify(tmp_path / "out")
    with pytest.raises(Unsupported, match=r"shape \(102, 36\) with grown and \(97, 36\) with head"):
        remerge.plan(place / "base", [tmp_path / "grown", place / "head"])
    adapted.write_adapter(place / "base", tmp_path / "more", config, 61, rows=7)
    with pytest.raises(BadInput, match=r"set vocab_size in config\.json: grown to 102"):
        remerge.plan(place / "base", [tmp_path / "grown", tmp_path / "more"])


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tied")
    adapted.write_base(root / "base", tied=True)
    configs = {
        "embedding": LoraConfig(r=2, target_modules=["embed_tokens"]),
        "rows": LoraConfig(
            r=2, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [5, 7]}
        ),
        "plain": LoraConfig(r=2, target_modules=["q_proj"]),
        "untied": LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]),
        "apart": LoraConfig(
            r=2,
            target_modules=["q_proj"],
            trainable_token_indices={"embed_tokens": [1], "lm_head": [3]},
        ),
    }
    for seed, (name, config) in enumerate(configs.items()):
        adapted.write_adapter(root / "base", root / name, config, 70 + seed)
    return root


def test_tied_stays_tied(tied: Path, tmp_path: Path):
    remerge.merge(tied / "base", [tied / "embedding", tied / "plain"], tmp_path / "out")
    found = tiny.read_tensors(tmp_path / "out")
    one = adapted.read(remerge.open_merged(tied / "base", tied / "embedding"))
    assert torch.equal(found[EMBEDDING], one[EMBEDDING])
    assert HEAD not in found


def test_one_that_unties(tied: Path, tmp_path: Path):
    remerge.merge(tied / "base", [tied / "plain", tied / "untied"], tmp_path / "out")
    one = adapted.read(remerge.open_merged(tied / "base", tied / "untied"))
    found = tiny.read_tensors(tmp_path / "out")
    assert torch.equal(found[HEAD], one[HEAD])
    assert torch.equal(found[EMBEDDING], one[EMBEDDING])
    assert json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"] is False
    for other in ("embedding", "rows"):
        for untier in ("untied", "apart"):
            with pytest.raises(Unsupported, match=f"{other} changes .* {untier} unties lm_head"):
                remerge.plan(tied / "base", [tied / other, tied / untier])


# --- what no number of threads, bytes or shards may change ---------------------------------------


@pytest.mark.parametrize("method", ["sum", "ties", "sequential"])
def test_threads_memory_and_shards_change_no_byte(
    rounded: tuple[Path, torch.dtype], tmp_path: Path, method: str
):
    place, dtype = rounded
    adapted.write_base(tmp_path / "sharded", dtype, shard="20KB")
    paths = [place / kind for kind in ("rslora", "dora", "saved", "ia3")]
    options: dict[str, Any] = {"method": method, "weights": [0.5, 1.0, 1.0, -0.25]}
    remerge.merge(place / "base", paths, tmp_path / "one", threads=1, **options)
    remerge.merge(
        place / "base", paths, tmp_path / "many", threads=5, max_memory="512MiB", **options
    )
    assert tiny.files_of(tmp_path / "one") == tiny.files_of(tmp_path / "many")
    remerge.merge(tmp_path / "sharded", paths, tmp_path / "shards", **options)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    whole, parts = (tiny.read_tensors(tmp_path / name) for name in ("one", "shards"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
