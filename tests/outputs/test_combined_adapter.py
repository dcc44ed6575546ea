"""Several adapters as one new adapter: PEFT loads it, and it gives what merging them gives.

PEFT's own combination (`add_weighted_adapter`, cat) is the oracle where it has one.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    WhisperConfig,
    WhisperModel,
)

import remerge
from remerge.errors import BadInput, IntegrityError, NotReproduced, UsageError
from tests import tiny
from tests.adapters.lora import models
from tests.merging import quantised

EXPERTS = ["experts.gate_up_proj", "experts.down_proj", "gate.weight"]
WEIGHTS = [0.7, -0.4]
# A model, and of each adapter its rank, alpha and what it targets.
Adapters = Sequence[tuple[int, float, dict[str, Any]]]
CASES: dict[str, tuple[Callable[[], PreTrainedModel], Adapters]] = {
    "llama": (
        models.llama,
        [
            (3, 5, {"target_modules": ["q_proj", "down_proj", "lm_head"]}),
            (
                4,
                2,
                {
                    "target_modules": ["q_proj", "v_proj", "embed_tokens"],
                    "rank_pattern": {"v_proj": 1},
                    "use_rslora": True,
                },
            ),
        ],
    ),
    "tied": (
        lambda: models.llama(tied=True),
        [
            (2, 3, {"target_modules": ["q_proj", "embed_tokens"]}),
            (5, 5, {"target_modules": ["embed_tokens", "up_proj"]}),
        ],
    ),
    "gpt2": (
        models.gpt2,
        [
            (3, 4, {"target_modules": ["c_attn", "wte"], "fan_in_fan_out": True}),
            (2, 7, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
        ],
    ),
    "fused": (
        models.phi3,
        [
            (3, 5, {"target_modules": ["qkv_proj", "gate_up_proj"]}),
            (1, 5, {"target_modules": ["qkv_proj", "o_proj"]}),
        ],
    ),
    "experts": (
        models.qwen3_moe,
        [
            (2, 3, {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
            (3, 1, {"target_modules": ["v_proj"], "target_parameters": EXPERTS[:1]}),
        ],
    ),
    "transposed experts": (
        models.gpt_oss,
        [
            (2, 3, {"target_modules": ["q_proj"], "target_parameters": EXPERTS[:2]}),
            (2, 3, {"target_modules": ["q_proj"], "target_parameters": EXPERTS[:1]}),
        ],
    ),
}


def loaded(path: Path, dtype: Any = "auto") -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype)


def lora(rank: int, alpha: float, **options: Any) -> peft.LoraConfig:
    return peft.LoraConfig(
        r=rank, lora_alpha=alpha, init_lora_weights=False, task_type="CAUSAL_LM", **options
    )


def write(
    base: Path, place: Path, configs: Sequence[peft.LoraConfig], model: Any = loaded
) -> list[Path]:
    """Random adapters made by PEFT, one a configuration."""
    found: list[Path] = []
    for number, config in enumerate(configs):
        torch.manual_seed(11 + number)
        made: Any = peft.get_peft_model(model(base), config)
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn_like(parameter) * 0.2)
        found.append(place / f"adapter{number}")
        made.save_pretrained(found[-1], save_embedding_layers=False)
    return found


def made(place: Path, case: str, dtype: torch.dtype = torch.float32) -> tuple[Path, list[Path]]:
    build, adapters = CASES[case]
    build().to(dtype).save_pretrained(place / "base")
    configs = [lora(rank, alpha, **options) for rank, alpha, options in adapters]
    return place / "base", write(place / "base", place, configs)


def in_peft(base: Path, adapter: Path, model: Any = loaded) -> Any:
    """The adapter on its base; every key of either must be met."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = peft.PeftModel.from_pretrained(model(base), str(adapter))
    told = [str(warning.message) for warning in caught]
    # PEFT does not find parameters of experts in rank_pattern when it looks for idle entries.
    lost = [text for text in told if "key" in text.lower() and "rank_pattern" not in text]
    assert not [text for text in lost if "alpha_pattern" not in text], told
    return found


def merged(base: Path, adapters: Any, out: Path, **options: Any) -> dict[str, torch.Tensor]:
    remerge.merge(base, adapters, out, **options)
    return tiny.read_tensors(out)


def check_same(
    found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], steps: float = 4.0
) -> None:
    """No value is off by more than so many units in the last place of its tensor's largest."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        unit = torch.finfo(tensor.dtype).eps * float(tensor.double().abs().max())
        assert float((found[name].double() - tensor.double()).abs().max()) <= steps * unit, name


def check_whole_way(base: Path, adapters: list[Path], out: Path, **options: Any) -> Any:
    """The new adapter, merged by remerge and by PEFT, is the merge; and it verifies."""
    before = {path: tiny.files_of(path) for path in (base, *adapters)}
    manifest = remerge.combine(base, adapters, out, **options).manifest
    options.pop("dtype", None)
    direct = merged(base, adapters, out.with_name("direct"), **options)
    check_same(merged(base, out, out.with_name("again")), direct)
    state = in_peft(base, out).merge_and_unload().state_dict()
    wanted = loaded(out.with_name("direct")).state_dict()
    check_same({name: state[name] for name in wanted}, dict(wanted))
    remerge.verify(out)
    assert {path: tiny.files_of(path) for path in before} == before
    return manifest


@pytest.mark.parametrize("method", ["sum", "cat", "linear"])
@pytest.mark.parametrize("case", CASES)
def test_products_stay_exact(tmp_path: Path, case: str, method: str):
    base, adapters = made(tmp_path, case)
    manifest = check_whole_way(base, adapters, tmp_path / "new", method=method, weights=WEIGHTS)
    assert manifest.exact
    assert manifest.reproducible == "everywhere"
    assert manifest.relative_error < 1e-7
    assert manifest.saved_whole == ()
    ranks = {record.name: record.rank for record in manifest.tensors}
    assert max(ranks.values()) == sum(rank for rank, _, _ in CASES[case][1])


@pytest.mark.parametrize("case", ["llama", "tied", "gpt2", "fused"])
def test_against_peft(tmp_path: Path, case: str):
    base, adapters = made(tmp_path, case)
    remerge.combine(base, adapters, tmp_path / "new", method="cat", weights=WEIGHTS)
    model: Any = peft.PeftModel.from_pretrained(loaded(base), str(adapters[0]), adapter_name="a")
    model.load_adapter(str(adapters[1]), "b")
    # PEFT wants positive weights for cat only in its documentation: it multiplies A by them.
    model.add_weighted_adapter(["a", "b"], WEIGHTS, "both", combination_type="cat")
    state = model.merge_and_unload(adapter_names=["both"]).state_dict()
    ours = in_peft(base, tmp_path / "new").merge_and_unload().state_dict()
    check_same(ours, dict(state))


@pytest.mark.parametrize("case", ["llama", "gpt2", "experts"])
def test_in_bfloat16_a_merge_of_it_is_the_merge(tmp_path: Path, case: str):
    base, adapters = made(tmp_path, case, torch.bfloat16)
    remerge.combine(base, adapters, tmp_path / "new", weights=WEIGHTS)
    direct = merged(base, adapters, tmp_path / "direct", weights=WEIGHTS)
    again = merged(base, tmp_path / "new", tmp_path / "again")
    check_same(again, direct, steps=1)
    differing = sum(int((again[name] != direct[name]).sum()) for name in direct)
    assert differing <= 2


@pytest.mark.parametrize("case", ["llama", "experts"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_factors_in_sixteen_bits(tmp_path: Path, case: str, dtype: str):
    base, adapters = made(tmp_path, case)
    manifest = remerge.combine(base, adapters, tmp_path / "new", dtype=dtype).manifest
    held = load_file(tmp_path / "new" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in held.values()} == {getattr(torch, dtype)}
    direct = merged(base, adapters, tmp_path / "direct")
    again, plain = merged(base, tmp_path / "new", tmp_path / "again"), tiny.read_tensors(base)
    for record in manifest.tensors[:1]:
        name = "model.embed_tokens.weight" if "embed" in record.name else record.name
        change = (direct[name] - plain[name]).double()
        missed = float((again[name].double() - direct[name].double()).norm() / change.norm())
        assert record.relative_error == pytest.approx(missed, rel=1e-2)
        assert 1e-5 < missed < 1e-2


def test_convolutions(tmp_path: Path):
    torch.manual_seed(1)
    sizes: dict[str, Any] = {
        f"{side}_{what}": value
        for side in ("encoder", "decoder")
        for what, value in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 24))
    }
    config = WhisperConfig(
        d_model=16, vocab_size=60, num_mel_bins=8, pad_token_id=0, max_source_positions=20, **sizes
    )
    base = tmp_path / "base"
    WhisperModel(config).save_pretrained(base)
    configs = [
        peft.LoraConfig(r=2, target_modules=["conv1", "conv2", "q_proj"]),
        peft.LoraConfig(r=3, target_modules=["conv1"]),
    ]
    adapters = write(base, tmp_path, configs, AutoModel.from_pretrained)
    remerge.combine(base, adapters, tmp_path / "new", weights=WEIGHTS)
    direct = merged(base, adapters, tmp_path / "direct", weights=WEIGHTS)
    check_same(merged(base, tmp_path / "new", tmp_path / "again"), direct)
    state = in_peft(base, tmp_path / "new", AutoModel.from_pretrained).merge_and_unload()
    wanted = dict(AutoModel.from_pretrained(tmp_path / "direct").state_dict())
    check_same({name: state.state_dict()[name] for name in wanted}, wanted)


@pytest.mark.parametrize("options", [{}, {"method": "ties", "parameters": {"svd_rank": 72}}])
def test_on_a_quantised_base(tmp_path: Path, options: dict[str, Any]):
    """What is decomposed is the change of the decoded values."""
    quantised.write_plain(tmp_path / "plain")
    base = tmp_path / "base"
    quantised.quantise(
        tmp_path / "plain", base, load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16
    )
    configs = [
        lora(2, 3, target_modules=["q_proj", "lm_head"]),
        lora(2, 3, target_modules=["k_proj"], use_dora=bool(options)),
    ]
    adapters = write(tmp_path / "plain", tmp_path, configs)
    remerge.combine(base, adapters, tmp_path / "new", **options)
    remerge.verify(tmp_path / "new")
    plain = {k: v for k, v in options.items() if k != "parameters"}
    direct = merged(base, adapters, tmp_path / "direct", **plain)
    check_same(merged(base, tmp_path / "new", tmp_path / "again"), direct, steps=1)


def test_one_adapter_twice_takes_its_rank_once(tmp_path: Path):
    base, adapters = made(tmp_path, "llama")
    twice = [adapters[0], adapters[0]]
    manifest = check_whole_way(base, twice, tmp_path / "new", weights=WEIGHTS)
    assert {record.rank for record in manifest.tensors} == {3}


def test_the_nearest_of_a_smaller_rank(tmp_path: Path):
    base, adapters = made(tmp_path, "llama")
    asked: Any = {"svd_rank": 2}
    manifest = remerge.combine(base, adapters, tmp_path / "new", parameters=asked).manifest
    remerge.verify(tmp_path / "new")
    assert (manifest.exact, manifest.reproducible) == (False, "same-stack")
    direct = merged(base, adapters, tmp_path / "direct")
    again, plain = merged(base, tmp_path / "new", tmp_path / "again"), tiny.read_tensors(base)
    squares = [0.0, 0.0]
    for record in manifest.tensors:
        change = (direct[record.name] - plain[record.name]).double()
        values = torch.linalg.svdvals(change)
        least = float(values[2:].norm())
        missed = float((again[record.name].double() - direct[record.name].double()).norm())
        assert record.rank == min(2, record.rank)
        assert missed == pytest.approx(least, rel=1e-3, abs=1e-5), record.name
        assert record.relative_error == pytest.approx(
            least / float(values.norm()), rel=1e-3, abs=1e-5
        )
        squares[0] += missed**2
        squares[1] += float(values.norm()) ** 2
    assert manifest.relative_error == pytest.approx((squares[0] / squares[1]) ** 0.5, rel=1e-3)
    assert any("--svd-rank" in note for note in manifest.notes)


@pytest.mark.parametrize("case", ["llama", "experts", "transposed experts", "gpt2"])
@pytest.mark.parametrize("rank", [None, 16])
def test_what_is_no_product_is_decomposed(tmp_path: Path, case: str, rank: int | None):
    base, adapters = made(tmp_path, case)
    options: Any = {"method": "ties", "weights": [1.0, 0.8]}
    density = {"density": 0.4}
    asked = {**density, "svd_rank": rank}
    manifest = remerge.combine(
        base, adapters, tmp_path / "new", **options, parameters=asked
    ).manifest
    remerge.verify(tmp_path / "new")
    direct = merged(base, adapters, tmp_path / "direct", **options, parameters=density)
    again, plain = merged(base, tmp_path / "new", tmp_path / "again"), tiny.read_tensors(base)
    assert not manifest.exact
    assert again.keys() == direct.keys()
    total = sum(float((direct[n] - plain[n]).double().square().sum()) for n in direct) ** 0.5
    missed = sum(float((again[n] - direct[n]).double().square().sum()) for n in direct) ** 0.5
    assert manifest.relative_error == pytest.approx(missed / total, rel=2e-3, abs=1e-6)
    # The smaller side of all matrices but embeddings here is 16 at most.
    assert (missed / total > 0.05) if rank is None else (missed / total < 1e-5 or case == "gpt2")


@pytest.mark.parametrize("method", ["slerp", "model_stock", "sce", "dare_linear", "consensus"])
def test_of_full_rank_nothing_is_missed(tmp_path: Path, method: str):
    base, adapters = made(tmp_path, "llama")
    asked: Any = {} if method != "dare_linear" else {"density": 0.5, "seed": 4}
    options: Any = {"method": method, "parameters": asked}
    direct = merged(base, adapters, tmp_path / "direct", **options)
    options["parameters"] = {**asked, "svd_rank": 24}
    manifest = remerge.combine(base, adapters, tmp_path / "new", **options).manifest
    assert manifest.relative_error < 1e-6
    check_same(merged(base, tmp_path / "new", tmp_path / "again"), direct, steps=16)


@pytest.mark.parametrize("method", ["svd", "tsv", "core_space", "knots", "peft_linear"])
def test_methods_on_factors_stay_products(tmp_path: Path, method: str):
    if method == "peft_linear":
        # PEFT adds up A and B apart, which takes equal ranks.
        models.llama().save_pretrained(tmp_path / "base")
        config = lora(4, 3, target_modules=["q_proj", "v_proj"])
        base, adapters = tmp_path / "base", write(tmp_path / "base", tmp_path, [config, config])
    else:
        base, adapters = made(tmp_path, "llama")
    manifest = check_whole_way(base, adapters, tmp_path / "new", method=method)
    assert manifest.exact
    if method == "svd":
        assert max(record.rank for record in manifest.tensors) == 4


@pytest.mark.parametrize("case", ["llama", "experts"])
@pytest.mark.parametrize("options", [{}, {"method": "ties", "parameters": {"density": 0.5}}])
def test_resources_change_no_byte(tmp_path: Path, case: str, options: dict[str, Any]):
    base, adapters = made(tmp_path, case)
    places = [tmp_path / name for name in ("one", "four", "little")]
    resources: list[dict[str, Any]] = [{"threads": 1}, {"threads": 4}, {"max_memory": "512MiB"}]
    for place, given in zip(places, resources, strict=True):
        remerge.combine(base, adapters, place, **options, **given)
    assert tiny.files_of(places[0]) == tiny.files_of(places[1]) == tiny.files_of(places[2])
    assert str(tmp_path) not in (places[0] / "remerge.json").read_text()


def test_dora_in_the_mix(tmp_path: Path):
    models.llama().save_pretrained(tmp_path / "base")
    base = tmp_path / "base"
    configs = [
        lora(2, 3, target_modules=["q_proj"], use_dora=True),
        lora(3, 3, target_modules=["q_proj", "v_proj"]),
    ]
    adapters = write(base, tmp_path, configs)
    asked: Any = {"svd_rank": 16}
    manifest = remerge.combine(base, adapters, tmp_path / "new", parameters=asked).manifest
    remerge.verify(tmp_path / "new")
    direct = merged(base, adapters, tmp_path / "direct")
    check_same(merged(base, tmp_path / "new", tmp_path / "again"), direct, steps=8)
    exact = {record.name: record.exact for record in manifest.tensors}
    assert {name: flag for name, flag in exact.items() if "layers.0" in name} == {
        "model.layers.0.self_attn.q_proj.weight": False,
        "model.layers.0.self_attn.v_proj.weight": True,
    }


def with_whole(base: Path, place: Path, plain: str, **options: Any) -> list[Path]:
    """A plain LoRA, and one that also brings modules or rows whole, trained."""
    turned = options.get("fan_in_fan_out", False)
    configs = [lora(2, 3, target_modules=[plain], fan_in_fan_out=turned), lora(3, 3, **options)]
    found = write(base, place, configs)
    tensors = load_file(found[1] / "adapter_model.safetensors")
    for name in tensors:
        if "lora_" not in name:
            tensors[name] = tensors[name] + 0.25
    save_file(tensors, found[1] / "adapter_model.safetensors", metadata={"format": "pt"})
    return found


WHOLE: dict[str, tuple[Callable[[], PreTrainedModel], dict[str, Any], set[str]]] = {
    "norm": (
        models.llama,
        {"target_modules": ["q_proj"], "modules_to_save": ["model.norm"]},
        {"model.norm.weight"},
    ),
    "head": (
        models.llama,
        {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
        {"lm_head.weight"},
    ),
    "tied head": (
        lambda: models.llama(tied=True),
        {"target_modules": ["v_proj"], "modules_to_save": ["lm_head"]},
        {"lm_head.weight"},
    ),
    "biases": (
        lambda: models.llama(attention_bias=True),
        {"target_modules": ["q_proj"], "bias": "lora_only"},
        {f"model.layers.{layer}.self_attn.q_proj.bias" for layer in (0, 1)},
    ),
    "tokens": (
        models.llama,
        {"target_modules": ["q_proj"], "trainable_token_indices": [3, 7]},
        {"model.embed_tokens.weight"},
    ),
    "tied tokens": (
        lambda: models.llama(tied=True),
        {"target_modules": ["q_proj"], "trainable_token_indices": [3, 7]},
        {"model.embed_tokens.weight"},
    ),
    "a layer": (
        models.gpt2,
        {
            "target_modules": ["c_proj"],
            "modules_to_save": ["h.0.attn.c_attn"],
            "fan_in_fan_out": True,
        },
        {f"transformer.h.0.attn.c_attn.{leaf}" for leaf in ("weight", "bias")},
    ),
}


@pytest.mark.parametrize("case", WHOLE)
def test_what_is_replaced_goes_in_whole(tmp_path: Path, case: str):
    build, options, whole = WHOLE[case]
    base = tmp_path / "base"
    build().save_pretrained(base)
    plain = "c_fc" if case == "a layer" else "q_proj"
    adapters = with_whole(base, tmp_path, plain, **options)
    manifest = remerge.combine(base, adapters, tmp_path / "new").manifest
    assert set(manifest.saved_whole) == whole
    remerge.verify(tmp_path / "new")
    direct = merged(base, adapters, tmp_path / "direct")
    check_same(merged(base, tmp_path / "new", tmp_path / "again"), direct)
    in_peft(base, tmp_path / "new")
    for name in whole & direct.keys():
        assert torch.equal(tiny.read_tensors(tmp_path / "again")[name], direct[name])


def test_biases_of_lora_layers(tmp_path: Path):
    base = tmp_path / "base"
    models.llama(attention_bias=True).save_pretrained(base)
    configs = [
        lora(2, 3, target_modules=["q_proj"], lora_bias=True),
        lora(3, 3, target_modules=["q_proj"]),
    ]
    adapters = write(base, tmp_path, configs)
    manifest = check_whole_way(base, adapters, tmp_path / "new", weights=WEIGHTS)
    assert len(manifest.saved_whole) == 2
    assert manifest.exact


def test_embeddings_that_peft_saves_beside_factors_are_left_out(tmp_path: Path):
    base = tmp_path / "base"
    models.llama().save_pretrained(base)
    config = lora(2, 3, target_modules=["q_proj", "embed_tokens"])
    torch.manual_seed(3)
    model: Any = peft.get_peft_model(loaded(base), config)
    model.save_pretrained(tmp_path / "saved", save_embedding_layers=True)
    held = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    assert any("base_layer" in name for name in held)
    (other,) = write(base, tmp_path, [lora(3, 3, target_modules=["q_proj"])])
    manifest = check_whole_way(base, [tmp_path / "saved", other], tmp_path / "new")
    assert manifest.saved_whole == ()
    assert "model.embed_tokens.weight" in [record.name for record in manifest.tensors]


def test_a_grown_vocabulary_and_its_tokenizer(tmp_path: Path):
    base = tmp_path / "base"
    models.llama().save_pretrained(base)

    def grown(path: Path) -> Any:
        model: Any = loaded(path)
        model.resize_token_embeddings(43, mean_resizing=False)
        return model

    plain = write(base, tmp_path, [lora(2, 3, target_modules=["q_proj"])])
    torch.manual_seed(5)
    model: Any = peft.get_peft_model(grown(base), lora(3, 3, target_modules=["v_proj"]))
    model.save_pretrained(tmp_path / "grown", save_embedding_layers=True)
    (tmp_path / "grown" / "tokenizer.json").write_text('{"size": 43}')
    adapters = [*plain, tmp_path / "grown"]
    manifest = remerge.combine(base, adapters, tmp_path / "new").manifest
    assert set(manifest.saved_whole) == {"model.embed_tokens.weight", "lm_head.weight"}
    assert (tmp_path / "new" / "tokenizer.json").read_text() == '{"size": 43}'
    direct = merged(base, adapters, tmp_path / "direct")
    assert direct["lm_head.weight"].shape == (43, 16)
    check_same(merged(base, tmp_path / "new", tmp_path / "again"), direct)
    assert (tmp_path / "again" / "tokenizer.json").exists()
    remerge.verify(tmp_path / "new")
    in_peft(base, tmp_path / "new", grown)


def test_a_task_s_head(tmp_path: Path):
    base = tmp_path / "base"
    models.llama(num_labels=3, pad_token_id=0).save_pretrained(base)

    def classifier(path: Path) -> Any:
        return AutoModelForSequenceClassification.from_pretrained(path, dtype="auto", num_labels=3)

    plain = write(base, tmp_path, [lora(2, 3, target_modules=["q_proj"])])
    torch.manual_seed(5)
    config = peft.LoraConfig(
        r=2, task_type="SEQ_CLS", target_modules=["v_proj"], init_lora_weights=False
    )
    peft.get_peft_model(classifier(base), config).save_pretrained(tmp_path / "task")
    adapters = [*plain, tmp_path / "task"]
    manifest = remerge.combine(base, adapters, tmp_path / "new").manifest
    assert manifest.saved_whole == ("score.weight",)
    stated = json.loads((tmp_path / "new" / "adapter_config.json").read_text())
    assert stated["task_type"] == "SEQ_CLS"
    direct = merged(base, adapters, tmp_path / "direct")
    check_same(merged(base, tmp_path / "new", tmp_path / "again"), direct)
    in_peft(base, tmp_path / "new", classifier)


def test_a_new_adapter_is_combined_with_others(tmp_path: Path):
    base, adapters = made(tmp_path, "experts")
    remerge.combine(base, adapters, tmp_path / "new")
    more = [tmp_path / "new", adapters[1]]
    remerge.combine(base, more, tmp_path / "newer", weights=WEIGHTS)
    direct = merged(base, more, tmp_path / "direct", weights=WEIGHTS)
    check_same(merged(base, tmp_path / "newer", tmp_path / "again"), direct)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    return made(tmp_path_factory.mktemp("pair"), "llama")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"requantize": "same"}, "--requantize"),
        ({"simulate": "nf4"}, "--simulate"),
        ({"keep_float32": ["*"]}, "--keep-float32"),
        ({"max_shard_size": "1GB"}, "--max-shard-size"),
        ({"copy_code": True}, "--copy-code"),
        ({"method": "sequential"}, "sequential"),
        ({"parameters": {"svd_rank": 0}}, "--svd-rank"),
        ({"parameters": {"density": 0.5}}, "--density"),
        ({"dtype": "float8"}, "float8"),
        ({"max_memory": "1MiB"}, "512MiB"),
    ],
)
def test_what_makes_no_sense_is_refused(
    pair: tuple[Path, list[Path]], tmp_path: Path, options: dict[str, Any], text: str
):
    with pytest.raises(UsageError, match=text):
        remerge.combine(*pair, tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_an_adapter_of_nothing_is_refused(pair: tuple[Path, list[Path]], tmp_path: Path):
    base, adapters = pair
    with pytest.raises(BadInput, match="nothing together"):
        remerge.combine(base, adapters, tmp_path / "out", weights=0.0)
    with pytest.raises(BadInput, match="cancel out"):
        remerge.combine(base, [adapters[0], adapters[0]], tmp_path / "out", weights=[1.0, -1.0])
    assert not list(tmp_path.iterdir())


def test_an_output_in_the_way_stays(pair: tuple[Path, list[Path]], tmp_path: Path):
    base, adapters = pair
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "work.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        remerge.combine(base, adapters, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    remerge.combine(base, adapters, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "work.txt").exists()
    assert remerge.combine(base, adapters, tmp_path / "out").already_there
    with pytest.raises(UsageError, match="not empty"):
        remerge.combine(base, adapters, tmp_path / "out", weights=0.5)


def test_a_changed_file_does_not_verify(pair: tuple[Path, list[Path]], tmp_path: Path):
    base, adapters = pair
    out = tmp_path / "out"
    remerge.combine(base, adapters, out)
    weights = out / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    with pytest.raises(IntegrityError, match="First difference: tensor"):
        remerge.verify(out)
    remerge.combine(base, adapters, out, overwrite=True)
    config = json.loads((out / "adapter_config.json").read_text())
    (out / "adapter_config.json").write_text(json.dumps(config, indent=1))
    with pytest.raises(IntegrityError):
        remerge.verify(out)


def test_a_forged_manifest_does_not_verify(pair: tuple[Path, list[Path]], tmp_path: Path):
    """Factors of other weights, with a manifest that names their digests."""
    base, adapters = pair
    one, other = tmp_path / "one", tmp_path / "other"
    remerge.combine(base, adapters, one, weights=WEIGHTS)
    remerge.combine(base, adapters, other, weights=[0.7, -0.3])
    mine, theirs = (json.loads((out / "remerge.json").read_text()) for out in (one, other))
    mine["outputs"] = theirs["outputs"]
    (one / "remerge.json").write_text(json.dumps(mine))
    (one / "adapter_model.safetensors").write_bytes(
        (other / "adapter_model.safetensors").read_bytes()
    )
    with pytest.raises(NotReproduced, match="First difference: tensor"):
        remerge.verify(one)
