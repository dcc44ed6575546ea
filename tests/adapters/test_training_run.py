"""Which run trained an adapter: folders as wandb, MLflow and transformers write them, and what must
not be taken for one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from remerge.adapters.training_run import Found, TrainingRun, training_run

BADGE = (
    '[<img src="https://raw.githubusercontent.com/wandb/assets/main/wandb-github-badge-28.svg" '
    'alt="Visualize in Weights & Biases" width="150" height="24"/>]'
)
EXPERIMENT = "423870521"


def adapter_at(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "adapter_config.json").write_text("{}")
    return path


def state(folder: Path, step: object, **more: object) -> None:
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, **more}))


def wandb(folder: Path, run_id: str, output: object = None, date: str = "20260101_120000") -> Path:
    run = folder / "wandb" / f"run-{date}-{run_id}"
    (run / "files").mkdir(parents=True)
    (run / f"run-{run_id}.wandb").write_bytes(b"\0")
    if output is not None:
        # As wandb 0.2x writes it; before, a line "desc: null" stood between.
        text = f"num_train_epochs:\n    value: 3\noutput_dir:\n    value: {output}\nseed:\n"
        (run / "files/config.yaml").write_text(text)
    (run / "files/wandb-metadata.json").write_text('{"username": "alice", "host": "box"}')
    return run


def mlflow(folder: Path, run_id: str, output: object = None, stage: str = "active") -> Path:
    run = folder / "mlruns" / EXPERIMENT / run_id
    (run / "params").mkdir(parents=True)
    (run / "meta.yaml").write_text(
        f"artifact_uri: file:///home/alice/mlruns/{EXPERIMENT}/{run_id}/artifacts\n"
        f"end_time: 1\nexperiment_id: '{EXPERIMENT}'\nlifecycle_stage: {stage}\n"
        f"run_id: {run_id}\nrun_name: bold-cat\nrun_uuid: {run_id}\nuser_id: alice\n"
    )
    (run.parent / "meta.yaml").write_text(f"experiment_id: '{EXPERIMENT}'\nname: x\n")
    if output is not None:
        (run / "params/output_dir").write_text(str(output))
    return run


ONE, TWO = "ab12cd34", "zz98yy76"
HEX = "0123456789abcdef0123456789abcdef"


def test_nothing_beside_is_no_run(tmp_path: Path):
    assert training_run(adapter_at(tmp_path / "p/out/adapter")) == Found(None)


@pytest.mark.parametrize("up", [0, 1, 2])
def test_the_only_run_near(tmp_path: Path, up: int):
    adapter = adapter_at(tmp_path / "p/out/adapter")
    wandb((adapter, *adapter.parents)[up], ONE)
    assert training_run(adapter).run == TrainingRun("wandb", ONE)


def test_three_folders_above_is_too_far(tmp_path: Path):
    adapter = adapter_at(tmp_path / "p/out/adapter")
    wandb(tmp_path, ONE)
    assert training_run(adapter) == Found(None)
    wandb(tmp_path / "p", TWO)
    assert training_run(adapter, top=adapter.parent) == Found(None)


def test_the_trainer_s_state(tmp_path: Path):
    adapter = adapter_at(tmp_path / "out")
    state(adapter, 1200, epoch=2.5, best_metric=0.25, log_history=[{"loss": 1}])
    assert training_run(adapter).run == TrainingRun("trainer", None, 1200, 2.5, 0.25)
    wandb(tmp_path, ONE)
    assert training_run(adapter).run == TrainingRun("wandb", ONE, 1200, 2.5, 0.25)


def test_a_checkpoint_has_its_own_step(tmp_path: Path):
    state(adapter_at(tmp_path / "out"), 900)
    plain = adapter_at(tmp_path / "out/checkpoint-500")
    assert training_run(plain) == Found(None)
    state(plain, 500)
    assert training_run(plain).run == TrainingRun("trainer", None, 500)
    named = adapter_at(tmp_path / "out/checkpoint-500/policy")
    assert training_run(named).run == TrainingRun("trainer", None, 500)


@pytest.mark.parametrize("step", [None, True, -1, 1.5, "7", 10**30, [1]])
def test_a_step_that_is_none(tmp_path: Path, step: object):
    adapter = adapter_at(tmp_path / "out")
    state(adapter, step)
    assert training_run(adapter) == Found(None)


def test_several_runs_are_told_apart_by_where_they_wrote(tmp_path: Path):
    adapter = adapter_at(tmp_path / "p/out/adapter")
    wandb(tmp_path / "p", ONE, "out/adapter")
    wandb(tmp_path / "p", TWO, "out/other", "20260202_120000")
    wandb(tmp_path / "p", "unnamed1", None, "20260303_120000")
    assert training_run(adapter).run == TrainingRun("wandb", ONE)
    wandb(tmp_path / "p", "again123", "./out/adapter/", "20260404_120000")
    assert training_run(adapter) == Found(None, (f"wandb:{ONE}", "wandb:again123"))


@pytest.mark.parametrize("form", ["{}", "'{}'", '"{}"'])
def test_where_a_run_wrote_is_known_after_a_move_too(tmp_path: Path, form: str):
    adapter = adapter_at(tmp_path / "elsewhere/adapter")
    wandb(tmp_path / "elsewhere", ONE, form.format("/cluster/of/alice/adapter"))
    wandb(tmp_path / "elsewhere", TWO, form.format("/cluster/of/alice/more"), "20260202_120000")
    assert training_run(adapter).run == TrainingRun("wandb", ONE)


def test_a_run_that_wrote_elsewhere_is_not_its(tmp_path: Path):
    adapter = adapter_at(tmp_path / "adapter")
    wandb(tmp_path, ONE, tmp_path / "other")
    assert training_run(adapter) == Found(None)


def test_a_final_folder_in_the_trainer_s(tmp_path: Path):
    adapter = adapter_at(tmp_path / "p/out/final")
    wandb(tmp_path / "p", ONE, "out")
    wandb(tmp_path / "p", TWO, "out2", "20260202_120000")
    assert training_run(adapter) == Found(None)
    adapter_at(tmp_path / "p/out/checkpoint-10")
    assert training_run(adapter).run == TrainingRun("wandb", ONE)


def test_runs_that_nothing_tells_apart(tmp_path: Path):
    adapter = adapter_at(tmp_path / "adapter")
    wandb(tmp_path, ONE)
    wandb(tmp_path, TWO, date="20260202_120000")
    (tmp_path / "wandb/latest-run").symlink_to("run-20260202_120000-" + TWO)
    state(adapter, 7)
    # The latest run need not be this adapter's.
    assert training_run(adapter) == Found(
        TrainingRun("trainer", None, 7), (f"wandb:{ONE}", f"wandb:{TWO}")
    )


def test_a_run_that_was_resumed_is_one(tmp_path: Path):
    adapter = adapter_at(tmp_path / "adapter")
    wandb(tmp_path, ONE)
    wandb(tmp_path, ONE, date="20260202_120000")
    (tmp_path / "wandb/latest-run").symlink_to("run-20260202_120000-" + ONE)
    assert training_run(adapter).run == TrainingRun("wandb", ONE)


def test_the_latest_run_copied_without_links(tmp_path: Path):
    adapter = adapter_at(tmp_path / "adapter")
    wandb(tmp_path, ONE).rename(tmp_path / "wandb/latest-run")
    assert training_run(adapter).run == TrainingRun("wandb", ONE)


@pytest.mark.parametrize("where", ["https://wandb.ai", "https://wandb.example.org:8080"])
def test_the_link_of_the_card(tmp_path: Path, where: str):
    adapter = adapter_at(tmp_path / "out/checkpoint-3")
    wandb(tmp_path, TWO)
    (tmp_path / "out/README.md").write_text(f"# x\n{BADGE}({where}/alice/proj/runs/{ONE})\n")
    assert training_run(adapter).run == TrainingRun("wandb", ONE)


def test_links_that_are_none(tmp_path: Path):
    adapter = adapter_at(tmp_path / "out")
    text = "https://example.org/alice/proj/runs/1 https://notwandb.ai/a/b/runs/2 wandb.ai/a/b/runs"
    (adapter / "README.md").write_text(text)
    assert training_run(adapter) == Found(None)
    (adapter / "README.md").write_text(
        f"https://wandb.ai/a/b/runs/{ONE}. https://wandb.ai/a/b/runs/{TWO}?nw=alice"
    )
    assert training_run(adapter).undecided == (f"wandb:{ONE}", f"wandb:{TWO}")


def test_mlflow(tmp_path: Path):
    adapter = adapter_at(tmp_path / "out")
    mlflow(tmp_path, HEX, "out")
    mlflow(tmp_path, HEX[::-1], "other")
    mlflow(tmp_path, "f" * 32, "out", stage="deleted")
    assert training_run(adapter).run == TrainingRun("mlflow", HEX)


def test_an_adapter_among_the_files_of_a_run(tmp_path: Path):
    run = mlflow(tmp_path, HEX)
    mlflow(tmp_path, HEX[::-1])
    assert training_run(adapter_at(run / "artifacts/model")).run == TrainingRun("mlflow", HEX)
    run = wandb(tmp_path, ONE)
    assert training_run(adapter_at(run / "files/model")).run == TrainingRun("wandb", ONE)


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    wandb(other, ONE)
    mlflow(other, HEX)
    state(other, 7)
    (other / "README.md").write_text(f"https://wandb.ai/a/b/runs/{ONE}")
    adapter = adapter_at(tmp_path / "p/q/adapter")
    for name in ("wandb", "mlruns", "trainer_state.json", "README.md"):
        (adapter / name).symlink_to(other / name)
    (tmp_path / "p/wandb").mkdir()
    (tmp_path / "p/wandb/run-20260101_120000-linked00").symlink_to(other)
    (tmp_path / "p/wandb/latest-run").symlink_to(other / f"wandb/run-20260101_120000-{ONE}")
    assert training_run(adapter) == Found(None)


def test_hostile_files_are_no_run(tmp_path: Path):
    adapter = adapter_at(tmp_path / "adapter")
    os.mkfifo(adapter / "trainer_state.json")
    os.mkfifo(adapter / "README.md")
    wandb(adapter, "a" * 200)
    run = wandb(adapter, ONE)
    (run / "files/config.yaml").write_bytes(b"output_dir:\n  value: " + b" " * 2**22 + b"\xff")
    (adapter / "mlruns/1/x").mkdir(parents=True)
    (adapter / "mlruns/1/x/meta.yaml").write_text("run_id: ../../etc\n")
    (adapter / "mlruns/1/y").mkdir()
    (adapter / "mlruns/1/y/meta.yaml").mkdir()
    assert training_run(adapter).run == TrainingRun("wandb", ONE)
    (adapter / "trainer_state.json").unlink()
    (adapter / "trainer_state.json").write_text("[" * 100_000)
    assert training_run(adapter).run == TrainingRun("wandb", ONE)
    (run / "files/config.yaml").write_text("output_dir:\n  value: " + "x/" * 2000 + "\n")
    assert training_run(adapter).run is None
