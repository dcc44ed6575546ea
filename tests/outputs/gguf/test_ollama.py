"""Marks of chat templates, found by rendering: what Go's template must give is what jinja gives."""

from __future__ import annotations

from collections.abc import Sequence

import jinja2
import pytest

from remerge.outputs.gguf.ollama import Marks, Message, Render, find_marks, modelfile

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    + CHATML
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %}{{ m.content }}</s>"
    "{% else %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
)
# What no marks around messages can say.
COUNTS = (
    "{% for m in messages %}{{ loop.index }}. {{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SYSTEM_IN_FIRST = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] "
    "{% if loop.index0 == 1 and messages[0].role == 'system' %}<<SYS>>{{ messages[0].content }}"
    "<</SYS>>{% endif %}{{ m.content }} [/INST]{% elif m.role == 'assistant' %} {{ m.content }} "
    "{% endif %}{% endfor %}"
)
CURLY = CHATML.replace("<|im_end|>", "{{ '{{end}}' }}")


def renderer(template: str, bos: str = "<s>") -> Render:
    environment = jinja2.Environment()

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    compiled = environment.from_string(template)

    def render(messages: Sequence[Message], answers: bool) -> str | None:
        try:
            return compiled.render(
                messages=messages,
                add_generation_prompt=answers,
                bos_token=bos,
                raise_exception=refuse,
            )
        except jinja2.TemplateError:
            return None

    return render


@pytest.mark.parametrize("template", [CHATML, DEFAULT_SYSTEM, LLAMA3, GEMMA, MISTRAL])
@pytest.mark.parametrize(
    "roles",
    [
        ("user",),
        ("user", "assistant", "user"),
        ("system", "user"),
        ("system", "user", "assistant", "user", "assistant", "user"),
    ],
    ids=" ".join,
)
def test_marks_give_what_the_template_gives(template: str, roles: tuple[str, ...]):
    render = renderer(template)
    marks = find_marks(render, "<s>")
    assert marks is not None
    messages = [
        {"role": role, "content": f"text {n}\nof two lines"} for n, role in enumerate(roles)
    ]
    expected = render(messages, True)
    if expected is None:
        assert "system" in roles and marks.system is None
    else:
        assert marks.render(messages, True) == expected.removeprefix("<s>")


@pytest.mark.parametrize("template", [COUNTS, CURLY])
def test_other_templates_have_no_marks(template: str):
    assert find_marks(renderer(template), "<s>") is None


def test_a_system_message_inside_the_first_question_is_not_lost():
    """Marks that leave the system message out are marks without one, or none."""
    marks = find_marks(renderer(SYSTEM_IN_FIRST), "<s>")
    assert marks is None


def test_the_file():
    marks = Marks(("<s>", "</s>"), ("<u>", "</u>"), ("<a>", "</a>"), "", "<a>")
    text = modelfile(
        "m-Q4_K_M.gguf",
        marks,
        ["</a>", 'a"b'],
        {"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1, "top_k": True},
        2048,
    )
    assert text == (
        "FROM ./m-Q4_K_M.gguf\n"
        'TEMPLATE """{{ range .Messages }}{{ if eq .Role "system" }}<s>{{ .Content }}</s>'
        '{{ else if eq .Role "user" }}<u>{{ .Content }}</u>'
        '{{ else if eq .Role "assistant" }}<a>{{ .Content }}</a>{{ end }}{{ end }}<a>"""\n'
        'PARAMETER stop "</a>"\n'
        "PARAMETER temperature 0.6\n"
        "PARAMETER top_p 0.9\n"
        "PARAMETER repeat_penalty 1.1\n"
        "PARAMETER num_ctx 2048\n"
    )


def test_the_file_without_marks():
    text = modelfile("m.gguf", None, [], {"do_sample": False, "temperature": 0.6}, 131072)
    assert text.splitlines()[0] == "FROM ./m.gguf"
    assert "TEMPLATE" not in text.splitlines()[0] and "PARAMETER" not in text
