"""Command lines that make no sense, and outputs that must not be touched (catalogue 53, 73)."""

from __future__ import annotations

import os

from .place import Place, case

MERGE = ("merge", "{base}", "{adapter}", "-o")


@case("out|inside|base", *MERGE, "{base}/out", exits=(2, 3))
def output_lies_in_the_base(place: Place):
    pass


@case("out|inside|adapter", *MERGE, "{adapter}/deep/out", exits=(2, 3))
def output_lies_in_the_adapter(place: Place):
    pass


@case("base", *MERGE, "{base}", exits=(2, 3))
def output_is_the_base(place: Place):
    pass


@case("base", *MERGE, "{base}", "--overwrite", exits=(2, 3))
def output_is_the_base_with_overwrite(place: Place):
    pass


@case("adapter", *MERGE, "{adapter}", "--overwrite", exits=(2, 3))
def output_is_the_adapter_with_overwrite(place: Place):
    pass


@case("link|base", *MERGE, "{root}/link", "--overwrite", exits=(2, 3))
def output_links_to_the_base(place: Place):
    (place.root / "link").symlink_to("base")


@case("", *MERGE, "{root}", "--overwrite", exits=(2, 3))
def output_holds_the_base(place: Place):
    pass


@case("full.*--overwrite", *MERGE, "{root}/full", exits=(2, 3))
def output_is_a_directory_with_files(place: Place):
    (place.root / "full").mkdir()
    (place.root / "full" / "thesis.tex").write_text("years of work")


@case("file", *MERGE, "{root}/file", exits=(2, 3))
def output_is_a_file(place: Place):
    (place.root / "file").write_text("years of work")


@case("file", *MERGE, "{root}/file", "--overwrite", exits=(2, 3))
def output_is_a_file_with_overwrite(place: Place):
    (place.root / "file").write_text("years of work")


@case("gone|nowhere", *MERGE, "{root}/nowhere/gone/out", exits=(2, 3))
def outputs_parent_is_missing(place: Place):
    pass


@case("file", *MERGE, "{root}/file/out", exits=(2, 3))
def outputs_parent_is_a_file(place: Place):
    (place.root / "file").write_text("years of work")


@case("/proc/out", *MERGE, "/proc/out", exits=(2, 3, 75))
def outputs_parent_cannot_be_written(place: Place):
    pass


@case("out", *MERGE, "{out}" + "x" * 300, exits=(2, 3))
def outputs_name_is_too_long(place: Place):
    pass


@case("adapter_config", "merge", "{base}", "{base}", "-o", "{out}")
def the_base_stands_twice(place: Place):
    pass


@case("adapter|base", "merge", "{adapter}", "{base}", "-o", "{out}")
def base_and_adapter_are_swapped(place: Place):
    pass


@case("neither", "merge", "{base}x", "{adapter}", "-o", "{out}")
def base_does_not_exist(place: Place):
    pass


@case("neither", "merge", "{base}", "{adapter}x", "-o", "{out}")
def adapter_does_not_exist(place: Place):
    pass


@case("HF_HUB_OFFLINE", "merge", "org/name", "{adapter}", "-o", "{out}")
def base_is_on_the_hub_and_the_hub_is_off(place: Place):
    pass


@case("neither", "merge", "{base}" + os.fsdecode(b"\xff\xfe"), "{adapter}", "-o", "{out}")
def a_path_is_not_utf8(place: Place):
    pass


@case("directory", "merge", "{base}", "{adapter}/adapter_config.json", "-o", "{out}")
def adapter_is_a_file(place: Place):
    pass


@case("--fast", *MERGE, "{out}", "--fast", exits=2)
def an_option_is_unknown(place: Place):
    pass


@case("[Mm]issing|requires", "merge", "-o", "{out}", exits=2)
def an_argument_is_missing(place: Place):
    pass


@case("-o|output", "merge", "{base}", "{adapter}", exits=2)
def the_output_is_missing(place: Place):
    pass


@case("mix", "mix", "{base}", exits=2)
def the_command_is_unknown(place: Place):
    pass


@case("max-memory", *MERGE, "{out}", "--max-memory", "-1", exits=2)
def memory_is_negative(place: Place):
    pass


@case("max-memory", *MERGE, "{out}", "--max-memory", "lots", exits=2)
def memory_is_no_size(place: Place):
    pass


@case("max-memory|memory", *MERGE, "{out}", "--max-memory", "1KiB", exits=(2, 3))
def memory_is_too_small(place: Place):
    pass


@case("dtype", *MERGE, "{out}", "--dtype", "bfloat17", exits=2)
def dtype_option_is_unknown(place: Place):
    pass


@case("method", *MERGE, "{out}", "--method", "blend", exits=2)
def method_is_unknown(place: Place):
    pass


@case("weights", *MERGE, "{out}", "--weights", "0.5,0.5", exits=2)
def weights_are_too_many(place: Place):
    pass


@case("weights", *MERGE, "{out}", "--weights", "nan", exits=2)
def weight_is_nan(place: Place):
    pass


@case("recipe", "merge", "--recipe", "{root}/recipe.yaml", "-o", "{out}", exits=(2, 3))
def recipe_runs_code(place: Place):
    call = f'!!python/object/apply:os.system ["touch {place.canary}"]'
    (place.root / "recipe.yaml").write_text(f"base: {call}\nadapters: []\n")


@case("recipe", "merge", "--recipe", "{root}/recipe.yaml", "-o", "{out}", exits=(2, 3))
def recipe_grows_without_bound(place: Place):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    (place.root / "recipe.yaml").write_text("\n".join(lines))
