"""lm-eval: scores one question of a task of its own, answered by its model that guesses."""

# lm-eval lies in an environment of its own.
# pyright: basic, reportMissingImports=false

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

# It would ask the Hub of models that the task has nothing to do with.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

_TASK = """
task: remerge_probe
dataset_path: json
dataset_kwargs: {{data_files: {file}, cache_dir: {cache}}}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{answers}}}}"
doc_to_target: "{{{{right}}}}"
metric_list: [{{metric: acc}}]
"""


def probe() -> str:
    """A task file is read, its data loaded, and a score comes out."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    with tempfile.TemporaryDirectory(prefix="remerge-") as place:
        questions = Path(place, "questions.jsonl")
        row = {"question": "2 + 2 =", "answers": ["4", "4"], "right": 0}
        questions.write_text(json.dumps(row) + "\n")
        task = _TASK.format(file=json.dumps(str(questions)), cache=json.dumps(place))
        Path(place, "task.yaml").write_text(task)
        tasks = TaskManager(include_path=place, include_defaults=False)
        found = simple_evaluate(
            model="dummy", tasks=["remerge_probe"], task_manager=tasks, bootstrap_iters=0
        )
    if "acc,none" not in found["results"]["remerge_probe"]:
        raise RuntimeError("a task of one question came back without a score")
    return "scored a task of one question"
