"""The model an adapter was trained with, built on the meta device: names and shapes, no weights.

Only classes of the installed transformers are built; code that comes with a checkpoint never runs.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Generator, Iterator, Mapping
from typing import Any, cast

import torch
import transformers
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

from remerge.adapters.facts import ModelHint
from remerge.errors import BadInput, Unsupported

# Which of transformers' Auto classes PEFT's task types are trained with.
TASK_CLASSES: Mapping[str, tuple[str, ...]] = {
    "CAUSAL_LM": ("AutoModelForCausalLM", "AutoModelForImageTextToText"),
    "SEQ_2_SEQ_LM": ("AutoModelForSeq2SeqLM", "AutoModelForSpeechSeq2Seq"),
    "SEQ_CLS": ("AutoModelForSequenceClassification", "AutoModelForImageClassification"),
    "TOKEN_CLS": ("AutoModelForTokenClassification",),
    "QUESTION_ANS": ("AutoModelForQuestionAnswering",),
    "FEATURE_EXTRACTION": ("AutoModel",),
}
# Tried last, for adapters that name no task or were trained on less or more than the checkpoint.
COMMON_CLASSES = ("AutoModel", "AutoModelForCausalLM", "AutoModelForImageTextToText")
# What constructors raise for a config that is not theirs, or for want of an optional package.
_UNBUILDABLE = (
    ImportError,
    OSError,
    AssertionError,
    AttributeError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
)


def knows(model_type: object) -> bool:
    """Whether the installed transformers can build models of this type."""
    return isinstance(model_type, str) and model_type in CONFIG_MAPPING


def candidate_models(config: Mapping[str, Any], hint: ModelHint) -> Iterator[PreTrainedModel]:
    """Models that the adapter may have been trained with, likeliest first, each class once."""
    parsed = _parsed(config)
    seen: set[type[PreTrainedModel]] = set()
    failures: list[str] = []
    for model_class in _classes(parsed, config, hint):
        if model_class in seen:
            continue
        seen.add(model_class)
        try:
            yield _built(model_class, parsed)
        except _UNBUILDABLE as error:
            failures.append(f"{model_class.__name__}: {error}")
    if len(failures) == len(seen):
        raise Unsupported(
            f"Cannot build a model of type {config.get('model_type')!r} from config.json.",
            why="; ".join(failures) or "transformers has no class for it.",
            hint="Install the packages that the message names, or check config.json.",
        )


def _parsed(config: Mapping[str, Any]) -> PreTrainedConfig:
    model_type = config.get("model_type")
    # The weights' storage is not the names' concern, and remote code is never asked.
    ignored = {"quantization_config", "compression_config", "auto_map"}
    fields = {key: copy.deepcopy(value) for key, value in config.items() if key not in ignored}
    try:
        with quiet():
            config_class = cast(Any, CONFIG_MAPPING[str(model_type)])
            # JSON has no infinity, transformers writes one as a tagged string.
            return config_class.from_dict(config_class._decode_special_floats(fields))
    # Configs validate themselves with exceptions of several libraries' own.
    except Exception as error:
        raise BadInput(
            f"config.json is not a valid configuration of model type {model_type!r}.",
            why=str(error),
            hint=f"transformers {transformers.__version__} must be able to load this base.",
        ) from error


def _classes(
    parsed: PreTrainedConfig, config: Mapping[str, Any], hint: ModelHint
) -> Iterator[type[PreTrainedModel]]:
    named = [hint.base_model_class] if hint.base_model_class else []
    tasks = TASK_CLASSES.get(hint.task_type or "", ())
    architectures = cast(list[str], config.get("architectures") or [])
    for name in (*named, *tasks, *architectures, *COMMON_CLASSES):
        found = _exported(name)
        if hasattr(found, "_model_mapping"):
            found = _auto_class(found, parsed)
        if isinstance(found, type) and issubclass(found, PreTrainedModel):
            yield found


def _exported(name: str) -> Any:
    try:
        return getattr(transformers, name, None)
    except (ImportError, RuntimeError):
        # A class whose own module needs a package that is not installed.
        return None


def _auto_class(auto: Any, parsed: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """The class that an Auto class stands for with this config."""
    mapping = auto._model_mapping
    try:
        found = mapping[type(parsed)]
    except (ImportError, KeyError, ValueError):
        # None, or one that is listed but not exported.
        return None
    if not isinstance(found, list | tuple):
        return found
    options = cast(tuple[type[PreTrainedModel], ...], found)
    by_name = {option.__name__: option for option in options}
    named = [by_name[name] for name in parsed.architectures or () if name in by_name]
    return (named or list(options))[0]


def _built(model_class: type[PreTrainedModel], parsed: PreTrainedConfig) -> PreTrainedModel:
    whole: Any = copy.deepcopy(parsed)
    # A language or vision model alone is built from its part of a composite config.
    parts = [getattr(whole, key, None) for key in whole.sub_configs]
    config = next(
        (part for part in (whole, *parts) if type(part) is model_class.config_class), None
    )
    if config is None:
        raise TypeError(f"takes a {model_class.config_class}")
    with quiet(), no_init_weights(), torch.device("meta"):
        # Eager attention is the one implementation that needs no other package.
        return cast(Any, model_class)._from_config(config, attn_implementation="eager").eval()


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Nothing of what transformers and its models print or warn about on construction."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(level)
