"""Bases whose index, configuration or side files are wrong or evil (catalogue 48-54, 68-70)."""

from __future__ import annotations

import json
import os
import pickle

import numpy as np

from .place import (
    INDEX,
    SHARDS,
    TARGET,
    Place,
    case,
    edit_json,
    edit_tensors,
    read_raw,
    write_json,
    write_safetensors,
)


def _map(place: Place, **changes: str | None) -> None:
    """Change entries of the index; None takes one away."""
    index = json.loads((place.base / INDEX).read_text())
    entries = index["weight_map"] | changes
    index["weight_map"] = {name: file for name, file in entries.items() if file is not None}
    write_json(place.base / INDEX, index)


# --- the index -----------------------------------------------------------------------------------


@case(r"index\.json.*\.\./secret\.safetensors")
def index_climbs_out(place: Place):
    (place.root / "secret.safetensors").write_bytes(place.shard.read_bytes())
    _map(place, **{TARGET: "../secret.safetensors"})


@case(r"index\.json.*/secret\.safetensors")
def index_holds_an_absolute_path(place: Place):
    (place.root / "secret.safetensors").write_bytes(place.shard.read_bytes())
    _map(place, **{TARGET: str(place.root / "secret.safetensors")})


@case(r"index\.json.*sub")
def index_enters_a_folder(place: Place):
    (place.base / "sub").mkdir()
    place.shard.rename(place.base / "sub" / SHARDS[0])
    entries = read_raw(place.base / "sub" / SHARDS[0])[0]
    _map(place, **dict.fromkeys(entries, f"sub/{SHARDS[0]}"))


@case(r"index\.json.*plain file name")
def index_entry_is_a_number(place: Place):
    _map(place, **{TARGET: 7})  # type: ignore[arg-type]


@case(rf"{SHARDS[0]}.*missing")
def a_shard_is_missing(place: Place):
    place.shard.unlink()


@case(r"index\.json.*'model\.more\.weight'")
def index_lists_a_tensor_too_many(place: Place):
    _map(place, **{"model.more.weight": SHARDS[0]})


@case(rf"index\.json.*'{TARGET}'")
def index_misses_a_tensor(place: Place):
    _map(place, **{TARGET: None})


@case(rf"index\.json.*'{TARGET}' in {SHARDS[1]}")
def index_names_the_other_shard(place: Place):
    _map(place, **{TARGET: SHARDS[1]})


@case(rf"'{TARGET}'.*both")
def a_tensor_stands_in_two_shards(place: Place):
    edit_tensors(place.base / SHARDS[1], **{TARGET: np.zeros((16, 16), "f4")})


@case(r"index\.json.*not valid JSON")
def index_is_not_json(place: Place):
    (place.base / INDEX).write_text('{"weight_map": {')


@case(r"index\.json.*list")
def index_is_a_list(place: Place):
    write_json(place.base / INDEX, [])


@case(r"index\.json.*weight_map")
def index_is_empty(place: Place):
    write_json(place.base / INDEX, {"weight_map": {}})


@case(r"index\.json.*twice")
def index_states_a_tensor_twice(place: Place):
    path = place.base / INDEX
    entry = f'"{TARGET}": "{SHARDS[1]}",'
    path.write_text(path.read_text().replace('"weight_map": {', '"weight_map": {' + entry))


def _merged(place: Place) -> None:
    assert (place.out / "config.json").exists()
    merged = set(read_raw(place.out / SHARDS[0])[0]) | set(read_raw(place.out / SHARDS[1])[0])
    assert TARGET in merged


@case("", exits=0, check=_merged)
def index_states_another_total_size(place: Place):
    edit_json(place.base / INDEX, metadata={"total_size": 7})  # real checkpoints do


def _no_orphan(place: Place) -> None:
    assert not (place.out / "model-00003-of-00003.safetensors").exists()


@case("", exits=0, check=_no_orphan)
def a_shard_is_listed_nowhere(place: Place):
    write_safetensors(place.base / "model-00003-of-00003.safetensors", {"x": np.zeros(3, "f4")})


# --- the configuration ---------------------------------------------------------------------------


@case(r"config\.json")
def config_is_missing(place: Place):
    (place.base / "config.json").unlink()


@case(r"config\.json.*not valid JSON")
def config_is_not_json(place: Place):
    (place.base / "config.json").write_text("model_type: llama")


@case(r"config\.json.*list")
def config_is_a_list(place: Place):
    write_json(place.base / "config.json", ["llama"])


@case(r"config\.json.*not valid JSON")
def config_is_nested_deeply(place: Place):
    (place.base / "config.json").write_text('{"a":' * 200_000 + "1" + "}" * 200_000)


@case(r"config\.json.*bytes")
def config_is_huge(place: Place):
    os.truncate(place.base / "config.json", 10**9)


@case(r"config\.json.*not a regular file")
def config_is_a_fifo(place: Place):
    (place.base / "config.json").unlink()
    os.mkfifo(place.base / "config.json")


@case(r"model_type|llamma")
def model_type_is_unknown(place: Place):
    edit_json(place.base / "config.json", model_type="llamma", architectures=["Llamma"])


@case(r"config\.json|layers", exits=(0, 3))
def config_asks_for_a_billion_layers(place: Place):
    edit_json(place.base / "config.json", num_hidden_layers=10**9)


# --- other weights, other formats ----------------------------------------------------------------


def _without_weights(place: Place) -> None:
    for name in (*SHARDS, INDEX):
        (place.base / name).unlink()


@case(r"safetensors")
def there_are_no_weights(place: Place):
    _without_weights(place)


@case(r"GGUF")
def base_holds_only_gguf(place: Place):
    _without_weights(place)
    (place.base / "model.Q4_K_M.gguf").write_bytes(b"GGUF\x03" + b"\0" * 100)


@case(r"GGUF", "merge", "{base}/model.gguf", "{adapter}", "-o", "{out}")
def base_is_a_gguf_file(place: Place):
    (place.base / "model.gguf").write_bytes(b"GGUF\x03" + b"\0" * 100)


@case(r"GGUF")
def shard_is_a_gguf_file(place: Place):
    place.shard.write_bytes(b"GGUF\x03" + b"\0" * 100)


class Payload:
    """Unpickling it makes the canary."""

    def __init__(self, place: Place) -> None:
        self.command = f"touch '{place.canary}'"

    def __reduce__(self):
        return os.system, (self.command,)


@case(r"pickle")
def base_is_a_pickle_with_a_payload(place: Place):
    _without_weights(place)
    (place.base / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(place)))


@case(rf"{TARGET}.*I8")
def a_target_holds_integers(place: Place):
    header, data = read_raw(place.shard)
    tensors = {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], "<f4").reshape(entry["shape"])
        for name, entry in header.items()
    }
    tensors[TARGET] = np.zeros((16, 16), "i1")
    write_safetensors(place.shard, tensors)


# --- side files ----------------------------------------------------------------------------------


def _code(place: Place) -> str:
    return f"import os\nos.system(\"touch '{place.canary}'\")\n"


def _no_code(place: Place) -> None:
    assert not list(place.out.rglob("*.py"))


def _with_code(place: Place) -> None:
    code = (place.base / "modeling_evil.py").read_bytes()
    assert (place.out / "modeling_evil.py").read_bytes() == code


@case("", exits=0, check=_no_code)
def code_is_neither_run_nor_copied(place: Place):
    (place.base / "modeling_evil.py").write_text(_code(place))
    auto_map = {"AutoConfig": "modeling_evil.Config", "AutoModelForCausalLM": "x/y--evil.M"}
    edit_json(place.base / "config.json", auto_map=auto_map)


@case("", "merge", "{base}", "{adapter}", "-o", "{out}", "--copy-code", exits=0, check=_with_code)
def code_is_copied_when_asked_and_not_run(place: Place):
    (place.base / "modeling_evil.py").write_text(_code(place))
    edit_json(place.base / "config.json", auto_map={"AutoConfig": "modeling_evil.Config"})


TEMPLATE = """{{ cycler.__init__.__globals__.os.system("touch 'CANARY'") }}
{% for a in range(10**9) %}{{ a }}{% endfor %}"""


def _template_kept(place: Place) -> None:
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        assert (place.out / name).read_bytes() == (place.base / name).read_bytes()


@case("", exits=0, check=_template_kept)
def a_malicious_template_is_carried_and_never_rendered(place: Place):
    template = TEMPLATE.replace("CANARY", str(place.canary))
    (place.base / "chat_template.jinja").write_text(template)
    write_json(place.base / "tokenizer_config.json", {"chat_template": template})


@case(r"vocab\.txt.*not a regular file")
def a_side_file_is_a_fifo(place: Place):
    os.mkfifo(place.base / "vocab.txt")


@case(r"vocab\.txt")
def a_side_file_links_to_a_device(place: Place):
    (place.base / "vocab.txt").symlink_to("/dev/zero")


@case(r"vocab\.txt")
def a_side_file_links_out_of_the_base(place: Place):
    """A secret must not travel into a model that will be published."""
    (place.root / "secret").write_text("password")
    (place.base / "vocab.txt").symlink_to("../secret")


@case("", exits=0, check=_merged)
def a_folder_links_to_itself(place: Place):
    (place.base / "loop").symlink_to(".")


CACHED = ("merge", "{root}/repo/snapshots/commit", "{adapter}", "-o", "{out}")


def _cache(place: Place) -> None:
    """Lay the base out as the Hub's cache does: a snapshot of links to blobs."""
    snapshot, blobs = place.root / "repo" / "snapshots" / "commit", place.root / "repo" / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    for number, file in enumerate(sorted(place.base.iterdir())):
        file.rename(blobs / f"{number:064x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:064x}")


@case("", *CACHED, exits=0, check=_merged)
def the_base_is_in_the_hubs_cache(place: Place):
    _cache(place)


@case(r"vocab\.txt", *CACHED)
def a_blob_of_the_cache_links_out_of_it(place: Place):
    """An archive may hold what looks like a cache."""
    _cache(place)
    (place.root / "secret").write_text("password")
    (place.root / "repo" / "blobs" / "x").symlink_to("../../secret")
    (place.root / "repo" / "snapshots" / "commit" / "vocab.txt").symlink_to("../../blobs/x")
