"""Base and adapter from the Hub: a merge by names, against a server that speaks its endpoints."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests import tiny
from tests.hub_server import HubServer


def remerge(hub: str, home: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(home), **more}
    if "HF_HUB_OFFLINE" not in more:
        environment.pop("HF_HUB_OFFLINE", None)
    return subprocess.run(
        [sys.executable, "-m", "remerge", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )


def test_merge_by_names_records_commits_and_verifies_offline(inputs: Path, tmp_path: Path):
    home, out = tmp_path / "home", str(tmp_path / "out")
    with HubServer() as server:
        server.add("acme/base", inputs / "base")
        server.add("acme/sql", inputs / "adapter")
        done = remerge(server.url, home, "merge", "acme/base@main", "acme/sql", "-o", out)
        assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out/remerge.json").read_text())
    assert manifest["base"]["hub_id"] == "acme/base"
    assert len(manifest["base"]["commit"]) == 40
    assert manifest["adapters"][0]["hub_id"] == "acme/sql"
    found = tiny.read_tensors(tmp_path / "out")
    wanted = tiny.expected(inputs / "base", inputs / "adapter")
    assert all(found[name].equal(wanted[name]) for name in wanted)
    # The server is gone: what was downloaded is enough.
    done = remerge("http://127.0.0.1:9", home, "verify", out, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr


def test_a_path_into_a_cache_is_recorded_and_verified_without_the_hub(inputs: Path, tmp_path: Path):
    commit, home = "ab" * 20, tmp_path / "home"
    places: list[str] = []
    for name, source in (("base", "base"), ("sql", "adapter")):
        place = tmp_path / "other" / f"models--acme--{name}" / "snapshots" / commit
        shutil.copytree(inputs / source, place)
        places.append(str(place))
    nowhere, out = "http://127.0.0.1:9", str(tmp_path / "out")
    done = remerge(nowhere, home, "merge", *places, "-o", out)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out/remerge.json").read_text())
    for record, name in ((manifest["base"], "base"), (manifest["adapters"][0], "sql")):
        assert (record["hub_id"], record["commit"]) == (f"acme/{name}", commit)
        assert record["name"] == f"acme/{name}" and record["subfolder"] is None
    provenance = json.loads((tmp_path / "out/provenance.json").read_text())
    dependencies = provenance["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert dependencies[0]["uri"] == f"hf://acme/base@{commit}"
    assert dependencies[0]["digest"] == {"gitCommit": commit}
    # It is read where it was, not in the cache of whoever verifies.
    done = remerge(nowhere, home, "verify", out)
    assert done.returncode == 0, done.stderr
    # It is no other merge than that of the same files elsewhere.
    plain = str(tmp_path / "plain")
    words = ("merge", str(inputs / "base"), str(inputs / "adapter"), "-o", plain)
    assert remerge(nowhere, home, *words).returncode == 0
    assert (
        json.loads((tmp_path / "plain/remerge.json").read_text())["merge_key"]
        == (manifest["merge_key"])
    )


def test_the_adapter_names_its_base_and_another_is_said_loudly(inputs: Path, tmp_path: Path):
    adapter = tmp_path / "adapter"
    shutil.copytree(inputs / "adapter", adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "acme/base"
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with HubServer() as server:
        server.add("acme/base", inputs / "base")
        server.add("acme/other", inputs / "base")
        hub, home = server.url, tmp_path / "home"
        done = remerge(hub, home, "merge", str(adapter), "-o", str(tmp_path / "one"))
        assert done.returncode == 0, done.stderr
        assert "trained on" not in done.stderr
        done = remerge(hub, home, "merge", "acme/other", str(adapter), "-o", str(tmp_path / "two"))
        assert done.returncode == 0, done.stderr
        assert "trained on acme/base, and is merged into acme/other" in done.stderr
        done = remerge(hub, home, "merge", "acme/none", str(adapter), "-o", str(tmp_path / "three"))
        assert done.returncode == 3
        assert "acme/none" in done.stderr
    assert (tmp_path / "one/model-00001-of-00002.safetensors").exists()
