"""Files that are not what a safetensors file must be (catalogue 36-47)."""

from __future__ import annotations

import json
import os
import struct

from .place import TARGET, Place, case, edit_header, edit_text, read_raw, write_raw

SHARD = r"model-00001-of-00002\.safetensors"


@case(SHARD + ".*0 bytes")
def shard_is_empty(place: Place):
    place.shard.write_bytes(b"")


@case(SHARD + ".*7 bytes")
def shard_has_seven_bytes(place: Place):
    place.shard.write_bytes(b"\x01" * 7)


@case(SHARD + ".*git-lfs pointer.*git lfs pull")
def shard_is_an_lfs_pointer(place: Place):
    oid = "sha256:" + "0" * 64
    place.shard.write_text(f"version https://git-lfs.github.com/spec/v1\noid {oid}\nsize 9\n")


@case(SHARD + ".*header claims")
def header_length_is_the_largest_integer(place: Place):
    place.shard.write_bytes(struct.pack("<Q", 2**64 - 1) + place.shard.read_bytes()[8:])


@case(SHARD + ".*header claims")
def header_is_larger_than_any(place: Place):
    with place.shard.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(100_000_100)


@case(SHARD + ".*header claims")
def header_length_is_beyond_the_file(place: Place):
    place.shard.write_bytes(struct.pack("<Q", 10**7) + place.shard.read_bytes()[8:])


@case(SHARD + ".*(cut short|truncated)")
def data_is_truncated(place: Place):
    os.truncate(place.shard, place.shard.stat().st_size - 1)


@case(SHARD + ".*after its last tensor")
def data_has_trailing_bytes(place: Place):
    place.shard.write_bytes(place.shard.read_bytes() + b"payload")


@case(SHARD + ".*hole")
def data_has_a_hole(place: Place):
    header, data = read_raw(place.shard)
    for entry in header.values():
        entry["data_offsets"] = [offset + 8 for offset in entry["data_offsets"]]
    write_raw(place.shard, json.dumps(header).encode(), b"\0" * 8 + data)


@case(SHARD + ".*overlaps")
def tensors_overlap(place: Place):
    def shift(header):
        offsets = header["lm_head.weight"]["data_offsets"]
        offsets[:] = [offsets[0] - 4, offsets[1] - 4]

    edit_header(place.shard, shift)


@case(SHARD + ".*overlaps")
def two_names_share_their_bytes(place: Place):
    edit_header(place.shard, lambda header: header.update(alias=header["lm_head.weight"]))


@case(SHARD + f".*{TARGET}.*twice")
def a_name_stands_twice(place: Place):
    _double(place, TARGET)


def _double(place: Place, name: str) -> None:
    header, data = read_raw(place.shard)
    raw = json.dumps(header)
    entry = json.dumps({name: header[name]})[1:-1]
    write_raw(place.shard, f"{raw[:-1]}, {entry}}}".encode(), data)


@case(SHARD + ".*twice")
def a_key_of_an_entry_stands_twice(place: Place):
    edit_text(place.shard, '"dtype": "F32"', '"dtype": "F16", "dtype": "F32"')


@case(SHARD + ".*shape")
def shape_overflows(place: Place):
    edit_header(place.shard, lambda header: header[TARGET].update(shape=[2**33, 2**33]))


@case(SHARD + ".*shape")
def shape_multiplies_to_the_right_size_modulo_2_to_64(place: Place):
    edit_header(place.shard, lambda header: header[TARGET].update(shape=[2**32 + 1, 2**32, 256]))


@case(SHARD + ".*shape")
def shape_is_negative(place: Place):
    edit_header(place.shard, lambda header: header[TARGET].update(shape=[-16, -16]))


@case(SHARD + ".*shape")
def shape_is_a_float(place: Place):
    edit_header(place.shard, lambda header: header[TARGET].update(shape=[16.0, 16]))


@case(SHARD + ".*shape")
def shape_is_true(place: Place):
    edit_header(place.shard, lambda header: header[TARGET].update(shape=[True, 256]))


@case(SHARD + ".*(F32 tensor of shape|bytes)")
def shape_and_bytes_disagree(place: Place):
    edit_header(place.shard, lambda header: header[TARGET].update(shape=[16, 15]))


@case(SHARD + ".*data_offsets")
def offsets_are_negative(place: Place):
    edit_header(place.shard, lambda header: header[TARGET].update(data_offsets=[-1024, 0]))


@case(SHARD + ".*unknown dtype 'F31'")
def dtype_is_unknown(place: Place):
    edit_header(place.shard, lambda header: header[TARGET].update(dtype="F31"))


@case(SHARD + ".*unknown dtype")
def dtype_is_a_megabyte_of_text(place: Place):
    edit_header(place.shard, lambda header: header[TARGET].update(dtype="F" * 1_000_000))


@case(SHARD)
def a_name_is_a_megabyte_of_text(place: Place):
    edit_header(place.shard, lambda header: header.update({"n" * 1_000_000: header.pop(TARGET)}))


@case(SHARD + ".*(not a tensor description|unknown field)")
def an_entry_has_another_field(place: Place):
    edit_header(place.shard, lambda header: header[TARGET].update(quantised=True))


@case(SHARD + ".*nested too deeply")
def header_is_nested_deeply(place: Place):
    write_raw(place.shard, b'{"a":' * 200_000 + b"1" + b"}" * 200_000, b"")


@case(SHARD + ".*(valid JSON|nested|digits)")
def header_holds_an_endless_number(place: Place):
    edit_text(place.shard, '"shape": [', '"shape": [' + "9" * 1_000_000 + ", ")


@case(SHARD + r".*named")
def a_name_holds_a_nul(place: Place):
    edit_header(place.shard, lambda header: header.update({"a\0b": header.pop(TARGET)}))


@case(SHARD + r".*named like a path")
def a_name_climbs_out(place: Place):
    edit_header(place.shard, lambda header: header.update({"../../x": header.pop(TARGET)}))


@case(SHARD + r".*named")
def a_name_moves_the_terminals_cursor(place: Place):
    edit_header(place.shard, lambda header: header.update({"\x1b[2J": header.pop(TARGET)}))


@case(SHARD + ".*__metadata__")
def a_tensor_is_named_metadata(place: Place):
    edit_header(place.shard, lambda header: header.update(__metadata__=header.pop(TARGET)))


@case(SHARD + ".*__metadata__")
def metadata_holds_a_list(place: Place):
    edit_header(place.shard, lambda header: header.update(__metadata__={"format": ["pt"]}))


@case(SHARD + ".*(valid JSON|UTF-8)")
def header_is_not_utf8(place: Place):
    edit_text(place.shard, "lm_head", b"lm_\xff\xfe")


@case(SHARD + ".*not a JSON object")
def header_starts_with_a_space(place: Place):
    edit_text(place.shard, "{", " {")


@case(SHARD + ".*not a JSON object")
def header_is_a_list(place: Place):
    write_raw(place.shard, b"[]", b"")


@case(SHARD)
def header_is_one_tensors_description(place: Place):
    write_raw(place.shard, b'{"dtype":"U8","shape":[1],"data_offsets":[0,1]}', b"x")


@case(SHARD + ".*NaN")
def header_holds_a_nan(place: Place):
    edit_text(place.shard, '"data_offsets": [0', '"data_offsets": [NaN')


@case("t0|adapter_model")
def a_million_empty_tensors(place: Place):
    entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    names = ",".join(f'"t{number}":{entry}' for number in range(1_000_000))
    write_raw(place.lora, b"{" + names.encode() + b"}", b"")


@case(SHARD + ".*not a regular file")
def shard_is_a_fifo(place: Place):
    place.shard.unlink()
    os.mkfifo(place.shard)


@case(SHARD + ".*not a regular file")
def shard_is_a_directory(place: Place):
    place.shard.unlink()
    place.shard.mkdir()


@case(SHARD + ".*(not a regular file|links to)")
def shard_is_a_device(place: Place):
    place.shard.unlink()
    place.shard.symlink_to("/dev/zero")


@case(SHARD + "(?!.*root:).*(links to|not a valid safetensors)")
def shard_links_to_a_system_file(place: Place):
    place.shard.unlink()
    place.shard.symlink_to("/etc/passwd")


@case(SHARD)
def shard_links_to_itself(place: Place):
    place.shard.unlink()
    place.shard.symlink_to(place.shard.name)


@case(SHARD + ".*missing.*dangling")
def shard_links_to_nothing(place: Place):
    place.shard.unlink()
    place.shard.symlink_to("gone")
