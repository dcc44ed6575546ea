"""An Ollama Modelfile (docs.ollama.com/modelfile)."""

from __future__ import annotations

from collections.abc import Iterator

from remerge.errors import UsageError
from remerge.outputs.gguf.ollama import PARAMETERS
from remerge.serving.printed.form import Form, Printing, commented

_ARCHITECTURES = (
    "Ollama reads a checkpoint's directory of a few architectures only (Llama, Mistral, Gemma and "
    "Phi3 by its documentation); of others give it a GGUF file: "
    "remerge export SOURCE -o model.gguf --to gguf:Q8_0."
)
_TEMPLATE = (
    "No TEMPLATE: Ollama takes its own for the chat template that the model carries, and the bare "
    "prompt where it knows none. `ollama show --modelfile NAME` tells which it took."
)
_BESIDE = "Template and parameters are those of the Modelfile that lies beside the file."


def _write(printing: Printing) -> str:
    served = printing.served
    if len(served.adapters) > 1:
        raise UsageError(
            "A Modelfile with several adapters adds them all up.",
            hint="Print one for each, or merge them: remerge merge BASE A B -o OUT.",
        )
    lines = [f"FROM {_quoted(str(served.model.absolute()))}"]
    lines += [f"ADAPTER {_quoted(str(adapter.path.absolute()))}" for adapter in served.adapters]
    if printing.beside:
        lines += [*printing.beside, f"PARAMETER num_ctx {printing.settings.context}"]
        return commented(printing, _BESIDE) + "".join(f"{line}\n" for line in lines)
    lines += [f"PARAMETER {line}" for line in _parameters(printing)]
    notes = (_TEMPLATE,) if served.model.suffix == ".gguf" else (_TEMPLATE, _ARCHITECTURES)
    return commented(printing, *notes) + "".join(f"{line}\n" for line in lines)


def _parameters(printing: Printing) -> Iterator[str]:
    yield f"num_ctx {printing.settings.context}"
    sampling = printing.sampling
    greedy = sampling.get("do_sample") is False
    if greedy:
        yield "temperature 0"
    for theirs, name in PARAMETERS.items():
        value = sampling.get(theirs)
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not greedy or theirs == "repetition_penalty":
            yield f"{name} {value:g}"
    for stop in printing.stops:
        yield f"stop {_quoted(stop)}"


def _quoted(text: str) -> str:
    """As Ollama's parser reads it: in quotes, of which none may be inside."""
    if not any(letter in text for letter in '"\n\r'):
        return f'"{text}"'
    if "\0" in text or '"""' in text or text.endswith('"'):
        raise UsageError(
            f"{text!r} cannot be written in a Modelfile.", hint="Rename it, or link to it."
        )
    return f'"""{text}"""'


MODELFILE = Form("modelfile", "an Ollama Modelfile", _write)
