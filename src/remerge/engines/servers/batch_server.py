"""transformers under load, by remerge's own interpreter: a model, merged or with PEFT's adapter on
it, that generates for one batch after the other and says when each step was done.

``POST /batch`` takes ``prompts`` (token ids), ``max_tokens`` and ``adapted`` (false runs the
base without its adapter), and answers with ``steps``: seconds from the request to each token of the
batch.
"""

# transformers' automatic classes, and what PEFT makes of a model, have no types.
# pyright: basic

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any


def _read() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="batch_server.py", allow_abbrev=False)
    parser.add_argument("model")
    parser.add_argument("--adapter")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--port", type=int, required=True)
    return parser.parse_args()


class Generator:
    """A model that generates greedily for batches of prompts."""

    def __init__(self, asked: argparse.Namespace) -> None:
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig

        if asked.threads is not None:
            torch.set_num_threads(asked.threads)
        model = AutoModelForCausalLM.from_pretrained(asked.model, dtype=asked.dtype)
        self._layers: list[Any] = []
        if asked.adapter is not None:
            from peft.tuners.tuners_utils import BaseTunerLayer

            from remerge.engines.adapted_model import put_on

            config = model.config.to_dict()
            model = put_on(model, [(Path(asked.adapter), 1.0)], config)
            self._layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]
        self._model: Any = model.to(asked.device).eval()
        # Nothing of the model's own: no end, no sampling, no penalty.
        self._model.generation_config = GenerationConfig()
        self._device = asked.device

    def __call__(
        self, prompts: Sequence[Sequence[int]], max_tokens: int, *, adapted: bool
    ) -> list[float]:
        """Seconds from now until each step's tokens were there."""
        import torch
        from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

        for layer in self._layers:
            layer.enable_adapters(adapted)
        moments: list[float] = []

        class Clock(StoppingCriteria):
            def __call__(self, ids: Any, scores: Any, **_: Any) -> Any:
                if ids.is_cuda:
                    torch.cuda.synchronize()
                moments.append(time.perf_counter())
                return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        started = time.perf_counter()
        longest = max(map(len, prompts))
        # Beginnings are filled up, so that all go on from the same place.
        ids = [[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        with torch.inference_mode():
            self._model.generate(
                input_ids=torch.tensor(ids, device=self._device),
                attention_mask=torch.tensor(mask, device=self._device),
                generation_config=GenerationConfig(
                    max_new_tokens=max_tokens, do_sample=False, pad_token_id=0
                ),
                stopping_criteria=StoppingCriteriaList([Clock()]),
            )
        return [moment - started for moment in moments]


def _handler(generator: Generator) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._say(200, {"status": "ok"})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                steps = generator(body["prompts"], body["max_tokens"], adapted=body["adapted"])
            except (RuntimeError, ValueError, IndexError) as error:
                self._say(500, {"error": " ".join(str(error).split())[:300]})
                return
            self._say(200, {"steps": steps})

        def _say(self, status: int, document: dict[str, Any]) -> None:
            content = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    return Handler


def main() -> None:
    asked = _read()
    handler = _handler(Generator(asked))
    HTTPServer(("127.0.0.1", asked.port), handler).serve_forever()


if __name__ == "__main__":
    main()
