"""The handlers of `transformers serve` with models of given names: a checkpoint directory, and
PEFT's adapters on it, which share its weights. Run by remerge's interpreter, as a file."""

# The server of transformers has no types, and its packages are an extra.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any


def _read(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="transformers_server.py", allow_abbrev=False)
    add = parser.add_argument
    add("model")
    add("--served-model-name")
    add("--adapter", nargs=2, action="append", default=[], metavar=("NAME", "PATH"))
    add("--dtype", default="auto")
    add("--device", default="auto")
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8000)
    return parser.parse_args(words)


def _load(asked: argparse.Namespace) -> tuple[dict[str, Any], Any]:
    """Models by name, and what writes their prompts."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(asked.model)
    if not config.architectures:
        sys.exit("error: config.json names no architecture.")
    kind = getattr(transformers, config.architectures[0])
    base = kind.from_pretrained(asked.model, dtype=asked.dtype, device_map=asked.device).eval()
    models = {asked.served_model_name or asked.model: base}
    for name, path in asked.adapter:
        models[name] = _adapted(base, Path(path))
    return models, transformers.AutoProcessor.from_pretrained(asked.model)


def _adapted(base: Any, adapter: Path) -> Any:
    from peft import PeftModel

    config = json.loads((adapter / "adapter_config.json").read_text())
    # Others may write into the base's weights when they are put on.
    is_plain = config.get("peft_type") == "LORA" and config.get("init_lora_weights", True) in (
        True,
        False,
    )
    shared = [*base.parameters(), *base.buffers()] if is_plain else []
    own = copy.deepcopy(base, {id(tensor): tensor for tensor in shared})
    return PeftModel.from_pretrained(own, str(adapter)).eval()


def _app(models: dict[str, Any], processor: Any) -> Any:
    from fastapi import HTTPException
    from transformers.cli.serving.chat_completion import ChatCompletionHandler
    from transformers.cli.serving.completion import CompletionHandler
    from transformers.cli.serving.model_manager import ModelManager
    from transformers.cli.serving.response import ResponseHandler
    from transformers.cli.serving.server import build_server
    from transformers.cli.serving.systemone import SystemOneHandler
    from transformers.cli.serving.transcription import TranscriptionHandler
    from transformers.cli.serving.utils import GenerationState, Modality

    class Named(ModelManager):
        """What is there, and nothing else: no name is looked up on disk or elsewhere."""

        def load_model_and_processor(self, name: str, *_: Any, **__: Any) -> tuple[Any, Any]:
            if name not in models:
                raise HTTPException(404, f"The model {name!r} is not served here.")
            return models[name], processor

        @staticmethod
        def process_model_name(model_id: str) -> str:
            return model_id

        @staticmethod
        def get_gen_models(cache_dir: str | None = None) -> list[dict[str, Any]]:
            about = {"object": "model", "created": 0, "owned_by": "transformers"}
            return [{"id": name, **about} for name in models]

        @staticmethod
        def get_model_modality(model: Any, processor: Any = None) -> Any:
            return Modality.LLM

    manager, state = Named(model_timeout=-1), GenerationState()
    both = (manager, state)
    return build_server(
        manager,
        ChatCompletionHandler(*both),
        completion_handler=CompletionHandler(*both),
        response_handler=ResponseHandler(*both),
        transcription_handler=TranscriptionHandler(*both),
        systemone_handler=SystemOneHandler(*both),
        generation_state=state,
    )


def main() -> None:
    asked = _read(sys.argv[1:])
    try:
        import uvicorn
    except ImportError:
        sys.exit("error: transformers' server lacks its packages: pip install remerge[serve].")
    uvicorn.run(_app(*_load(asked)), host=asked.host, port=asked.port)


if __name__ == "__main__":
    main()
