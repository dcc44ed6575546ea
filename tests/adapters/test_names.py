"""Names against transformers itself: what it saves, and what it loads again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from remerge.adapters.direct_names import DirectNames, are_direct
from remerge.adapters.facts import ModelHint
from remerge.adapters.names import find_names, model_names
from remerge.adapters.regions import Layer, Names
from remerge.adapters.source_text import model_source
from remerge.errors import BadInput, Unsupported
from tests.adapters.plain import Factors, Facts, Speaks
from tests.adapters.rebuilt import ARCHS, Saved, differing, rebuilt, save, tiny

LLM = ModelHint("CAUSAL_LM")


def linear(shape: tuple[int, ...], rank: int = 2) -> tuple[Factors, ...]:
    """Factors that fit a Linear with a weight of this shape."""
    return (Factors((rank, shape[1]), (shape[0], rank)),)


def speaking(modules: dict[str, Any] | list[str], *parameters: str) -> Speaks:
    named = modules if isinstance(modules, dict) else dict.fromkeys(modules, ())
    return Speaks(named, dict.fromkeys(parameters, (1,)))


def sources(names: Names, parameter: str) -> list[str]:
    return [region.tensor for region in names.regions(parameter)]


@pytest.mark.parametrize("name", ARCHS)
def test_every_parameter_is_found_where_transformers_saves_it(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    saved = save(model, tmp_path)
    names = saved.names()
    assert type(model).__name__ == getattr(names, "architecture", None)
    assert differing(names, model, saved) == []
    loaded = type(model).from_pretrained(tmp_path)
    assert differing(names, loaded, saved) == []


@pytest.mark.parametrize("name", ARCHS)
def test_direct_names_are_the_models_wherever_they_are_used(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    source = model_source(model.config.model_type)
    if source is None or source.converted:
        pytest.skip("never direct")
    saved = save(model, tmp_path)
    names = saved.names()
    for tensor in saved.tensors:
        if not tensor.endswith(".weight") or len(saved.tensors[tensor].shape) != 2:
            continue
        module, shape = tensor.removesuffix(".weight"), tuple(saved.tensors[tensor].shape)
        layer = names.layer(module)
        transposes = layer is not None and layer.kind == "Conv1D"
        wanted = Speaks({module: linear(shape[::-1] if transposes else shape)}, {})
        if not are_direct(saved.config, saved.facts, wanted):
            continue
        assert layer is not None and layer.kind != "Conv1D"
        assert names.regions(tensor) == DirectNames(saved.facts).regions(tensor)
        assert names.tied(tensor) == ()


@pytest.mark.parametrize(
    ("name", "checkpoint", "adapter", "hint"),
    [
        ("llama", "LlamaModel", "LlamaForCausalLM", LLM),
        ("llama", "LlamaForCausalLM", "LlamaModel", ModelHint("FEATURE_EXTRACTION")),
        ("llama", "LlamaForCausalLM", "LlamaForSequenceClassification", ModelHint("SEQ_CLS")),
        ("qwen3_moe", "Qwen3MoeModel", "Qwen3MoeForCausalLM", LLM),
        ("qwen3_moe", "Qwen3MoeForCausalLM", "Qwen3MoeModel", ModelHint("FEATURE_EXTRACTION")),
        ("bert_cls", "BertModel", "BertForTokenClassification", ModelHint("TOKEN_CLS")),
        ("bert_mlm", "BertForMaskedLM", "BertForQuestionAnswering", ModelHint("QUESTION_ANS")),
        ("bert_mlm", "BertForMaskedLM", "BertModel", ModelHint(None, "BertModel")),
        ("t5", "T5ForConditionalGeneration", "T5EncoderModel", ModelHint(None, "T5EncoderModel")),
        ("vit", "ViTForImageClassification", "ViTModel", ModelHint(None, "ViTModel")),
        ("llava", "LlavaForConditionalGeneration", "LlavaModel", ModelHint(None, "LlavaModel")),
        ("llava", "LlavaModel", "LlavaForConditionalGeneration", LLM),
        ("qwen2_vl", "Qwen2VLModel", "Qwen2VLForConditionalGeneration", LLM),
        ("gemma3", "Gemma3ForConditionalGeneration", "Gemma3Model", ModelHint()),
        ("gpt2", "GPT2Model", "GPT2LMHeadModel", LLM),
        ("clip", "CLIPModel", "CLIPVisionModel", ModelHint(None, "CLIPVisionModel")),
        ("whisper", "WhisperForConditionalGeneration", "WhisperModel", ModelHint(None, None)),
    ],
)  # fmt: skip
def test_checkpoint_and_adapter_may_be_of_different_classes(
    name: str, checkpoint: str, adapter: str, hint: ModelHint, tmp_path: Path
) -> None:
    saved = save(tiny(name, checkpoint), tmp_path)
    model_class = getattr(transformers, adapter)
    loaded, told = model_class.from_pretrained(tmp_path, output_loading_info=True)
    modules = [name for name, kind in loaded.named_modules() if type(kind) is torch.nn.Linear]
    names = saved.names(hint, speaking(modules))
    assert [module for module in modules if names.layer(module) != Layer("Linear")] == []
    assert {key for key in loaded.state_dict() if not names.regions(key)} == told["missing_keys"]
    for key in loaded.state_dict().keys() - told["missing_keys"]:
        assert torch.equal(rebuilt(names, key, saved.tensors), loaded.state_dict()[key]), key


@pytest.mark.parametrize(
    ("name", "module", "tensor"),
    [
        ("gpt_neox", "embed_out", None),
        ("vit", "vit.encoder.layer.0.attention.attention.query", None),
        ("llava", "language_model.model.layers.0.self_attn.q_proj", None),
        ("llava", "language_model.lm_head", None),
        ("qwen2_vl", "model.layers.0.self_attn.q_proj", None),
        ("qwen2_vl", "visual.blocks.0.attn.qkv", None),
        ("mixtral", "model.layers.0.block_sparse_moe.experts.1.w1", None),
        (
            "mixtral",
            "model.layers.0.mlp.experts.1.w2",
            "model.layers.0.block_sparse_moe.experts.1.w2",
        ),
        ("qwen2_moe", "model.layers.0.mlp.experts.1.gate_proj", None),
        ("phimoe", "model.layers.0.block_sparse_moe.experts.1.w3", None),
        ("jamba", "model.layers.1.feed_forward.experts.1.down_proj", None),
        ("lfm2_moe", "model.layers.1.feed_forward.experts.1.w1", None),
        ("dinov2_swiglu", "encoder.layer.0.mlp.weights_in", None),
    ],
)
def test_names_of_older_versions_are_understood(
    name: str, module: str, tensor: str | None, tmp_path: Path
) -> None:
    saved = save(tiny(name), tmp_path)
    tensor = tensor or module
    names = saved.names(LLM, speaking([module]))
    assert names.layer(module) == Layer("Linear")
    assert sources(names, f"{module}.weight") == [f"{tensor}.weight"]
    assert names.shape(f"{module}.weight") == tuple(saved.tensors[f"{tensor}.weight"].shape)
    assert torch.equal(
        rebuilt(names, f"{module}.weight", saved.tensors), saved.tensors[f"{tensor}.weight"]
    )


def test_kinds_of_layers(tmp_path: Path) -> None:
    gpt2 = save(tiny("gpt2"), tmp_path / "gpt2").names()
    assert gpt2.layer("transformer.h.0.attn.c_attn") == Layer("Conv1D")
    assert gpt2.layer("transformer.wte") == Layer("Embedding")
    assert gpt2.layer("transformer.h.0.ln_1") == Layer("LayerNorm")
    assert gpt2.layer("transformer.h.7") is None
    wav = save(tiny("wav2vec2"), tmp_path / "wav").names()
    assert wav.layer("wav2vec2.feature_extractor.conv_layers.0.conv") == Layer("Conv1d")
    mamba = save(tiny("mamba"), tmp_path / "mamba").names()
    convolution = mamba.layer("backbone.layers.0.mixer.conv1d")
    assert convolution is not None and convolution.kind == "Conv1d" and convolution.groups > 1
    oss = save(tiny("gpt_oss"), tmp_path / "oss").names()
    assert oss.layer("model.layers.0.mlp.experts") == Layer("GptOssExperts", transposed=True)


def test_tied_parameters_lie_where_their_partner_is(tmp_path: Path) -> None:
    names = save(tiny("llama_tied"), tmp_path / "tied").names()
    assert names.tied("lm_head.weight") == ("model.embed_tokens.weight",)
    assert names.tied("model.embed_tokens.weight") == ("lm_head.weight",)
    assert sources(names, "lm_head.weight") == ["model.embed_tokens.weight"]
    assert names.checkpoint_name("lm_head.weight") == "lm_head.weight"
    assert save(tiny("llama"), tmp_path / "apart").names().tied("lm_head.weight") == ()
    t5 = save(tiny("t5"), tmp_path / "t5").names()
    assert set(t5.tied("shared.weight")) == {
        "lm_head.weight",
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
    }


def test_the_stored_one_of_two_tied_parameters_may_be_the_head(tmp_path: Path) -> None:
    saved = save(tiny("llama_tied"), tmp_path)
    tensors = dict(saved.tensors)
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    names = Saved(saved.path, saved.config, tensors).names()
    assert sources(names, "model.embed_tokens.weight") == ["lm_head.weight"]


def test_parameters_that_the_checkpoint_lacks_get_names_in_its_style(tmp_path: Path) -> None:
    bias = "layers.0.self_attn.q_proj.bias"
    whole = save(tiny("llama_bias"), tmp_path / "whole")
    bare = save(tiny("llama_bias", "LlamaModel"), tmp_path / "bare")
    for saved, name in ((whole, f"model.{bias}"), (bare, bias)):
        del saved.tensors[name]
        names = saved.names(LLM)
        assert sources(names, f"model.{bias}") == []
        assert names.checkpoint_name(f"model.{bias}") == name
    assert bare.names(LLM).checkpoint_name("lm_head.weight") == "lm_head.weight"
    classifier = whole.names(ModelHint("SEQ_CLS"))
    assert sources(classifier, "score.weight") == []
    assert classifier.checkpoint_name("score.weight") == "score.weight"
    llava = save(tiny("llava"), tmp_path / "llava")
    del llava.tensors["language_model.lm_head.weight"]
    assert llava.names().checkpoint_name("lm_head.weight") == "language_model.lm_head.weight"
    neox = save(tiny("gpt_neox"), tmp_path / "neox")
    del neox.tensors["embed_out.weight"]
    assert neox.names().checkpoint_name("lm_head.weight") in ("embed_out.weight", "lm_head.weight")


def test_an_expert_missing_from_the_checkpoint_is_refused(tmp_path: Path) -> None:
    saved = save(tiny("mixtral"), tmp_path)
    del saved.tensors["model.layers.0.block_sparse_moe.experts.1.w3.weight"]
    with pytest.raises(BadInput, match="do not fit the model"):
        saved.names().regions("model.layers.0.mlp.experts.gate_up_proj")
    with pytest.raises(Unsupported, match="No single tensor"):
        saved.names().checkpoint_name("model.layers.0.mlp.experts.gate_up_proj")


def test_a_tensor_of_another_shape_is_not_the_parameter(tmp_path: Path) -> None:
    saved = save(tiny("bert_cls"), tmp_path)
    names = Saved(saved.path, {**saved.config, "num_labels": 7}, saved.tensors).names()
    assert names.regions("classifier.weight") == ()


# --- which way is taken ---------------------------------------------------------------------------
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"


def is_direct(saved: Saved, wanted: Speaks) -> bool:
    return isinstance(find_names(saved.config, saved.facts, LLM, wanted), DirectNames)


def test_plain_layers_are_found_without_transformers(tmp_path: Path) -> None:
    saved = save(tiny("llama"), tmp_path)
    script = f"""
import sys
from remerge.adapters.names import ModelHint, find_names
from tests.adapters.plain import Factors, Facts, Speaks
config, tensors = {saved.config!r}, {saved.facts!r}
wanted = Speaks({{{DOWN!r}: (Factors((2, 48), (32, 2)),)}}, {{}})
names = find_names(config, tensors, ModelHint("CAUSAL_LM"), wanted)
assert names.layer({DOWN!r}).kind == "Linear", names
assert "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


def test_the_model_is_asked_where_names_do_not_suffice(tmp_path: Path) -> None:
    llama = save(tiny("llama"), tmp_path / "llama")
    tied = save(tiny("llama_tied"), tmp_path / "tied")
    gpt2 = save(tiny("gpt2"), tmp_path / "gpt2")
    square, wide = {Q: linear((32, 32))}, {DOWN: linear((32, 48))}
    head = {"lm_head": linear((96, 32))}
    assert is_direct(llama, speaking({**square, **wide}))
    assert is_direct(llama, speaking({**wide, **head}, "model.norm.weight"))
    assert not is_direct(llama, speaking(wide, "score.weight"))
    assert not is_direct(llama, speaking({DOWN: linear((48, 32))}))
    assert not is_direct(llama, speaking({DOWN: ()}))
    assert is_direct(tied, speaking(wide))
    assert not is_direct(tied, speaking(wide, "model.embed_tokens.weight"))
    # attn.c_proj is square: as [out, in] it would fit, but GPT-2 stores [in, out].
    assert not is_direct(gpt2, speaking({"transformer.h.0.attn.c_proj": linear((32, 32))}))
    # Some names of this model type are converted on loading, so none is trusted.
    moe = save(tiny("mixtral"), tmp_path / "moe")
    assert not is_direct(moe, speaking(square))


def unknown(**changes: Any) -> tuple[dict[str, Any], dict[str, Facts]]:
    config = {"model_type": "unheard_of", "vocab_size": 96, **changes}
    shapes = {"a.up": (48, 32), "a.down": (32, 48), "a.q": (32, 32), "head": (96, 32)}
    return config, {f"{name}.weight": Facts(shape, "BF16") for name, shape in shapes.items()}


def test_an_unknown_model_is_taken_by_its_names_or_refused() -> None:
    config, tensors = unknown()
    up, q, head = {"a.up": linear((48, 32))}, {"a.q": linear((32, 32))}, {"head": linear((96, 32))}
    names = find_names(config, tensors, LLM, speaking({**up, **q}))
    assert sources(names, "a.q.weight") == ["a.q.weight"]
    for wanted in (speaking(q), speaking({**up, **head}), speaking(up, "new.weight")):
        with pytest.raises(Unsupported, match="unheard_of"):
            find_names(config, tensors, LLM, wanted)
    untied, _ = unknown(tie_word_embeddings=False)
    assert find_names(untied, tensors, LLM, speaking(head)).tied("head.weight") == ()


def test_remote_code_is_ignored(tmp_path: Path) -> None:
    saved = save(tiny("llama"), tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    names = model_names({**saved.config, "auto_map": auto_map}, saved.facts, LLM)
    assert sources(names, "lm_head.weight") == ["lm_head.weight"]


def test_a_configuration_that_transformers_refuses(tmp_path: Path) -> None:
    saved = save(tiny("llama"), tmp_path)
    with pytest.raises(BadInput, match=r"config\.json"):
        model_names({**saved.config, "hidden_size": "wide"}, saved.facts, LLM)


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    saved = save(tiny("qwen2_vl"), tmp_path)
    capfd.readouterr()
    saved.names()
    assert capfd.readouterr() == ("", "")
