"""Checkpoints and model folders that ask a reader for more than it should give."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megabase.errors import CheckpointError, MegabaseError
from megabase.models.auto import DEFAULT_MODEL, load_config, load_model, load_tokenizer
from megabase.models.checkpoints.reader import read_weights
from megabase.models.describe import describe

START = pickle.PROTO + b"\x02"
DEEP = b"\x85" * 100_000
"""A tuple in a tuple in a tuple ..., 100,000 deep, around what stands before it."""
DOUBLE = b"2\x86" * 40
"""A pair of the same pair of the same pair ...: 2**40 items of what stands before it."""
DICT = b"ccollections\nOrderedDict\n"
STATE = b"ctorch._utils\n_rebuild_tensor_v2\n"


def text(value: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(value)) + value.encode()


PROGRAMS: dict[str, bytes] = {
    # Hashing a deep tuple recurses in C until the stack ends.
    "deep tuple as key": START + b"})" + DEEP + b"K\x01s.",
    "deep tuple as key of DICT": START + b"()" + DEEP + b"K\x01d.",
    "deep tuple in a set": b"\x80\x04\x8f()" + DEEP + b"\x90.",
    "deep tuple in a frozenset": b"\x80\x04()" + DEEP + b"\x91.",
    "deep tuple in a built set": START + b"cbuiltins\nset\n])" + DEEP + b"a\x85R.",
    "deep tuple as key of a built table": START + DICT + b"])" + DEEP + b"K\x01\x86a\x85R.",
    "deep tuple as SETITEMS": START + b"}()" + DEEP + b"K\x01u.",
    # Anything that walks the pair walks 2**40 items.
    "doubled tuple called": START + b")" + DOUBLE + b")R.",
    "doubled tuple gets attributes": START + b")" + DOUBLE + b"}b.",
    "doubled tuple as storage": START + b")" + DOUBLE + b"Q.",
    "doubled tuple as device": START + b"ctorch\ndevice\n)" + DOUBLE + b"\x85R.",
    "doubled tuple as key": START + b"})" + DOUBLE + b"K\x01s.",
    "doubled tuple as size": START + STATE + b"(NK\x00)" + DOUBLE + b")tR.",
    "doubled tuple as numpy type": START + b"cnumpy\ndtype\n)" + DOUBLE + b"\x85R.",
    "doubled tuple as type of a scalar": START + b"cnumpy.core.multiarray\nscalar\n)" + DOUBLE
    + b"C\x01a\x86R.",
    "doubled tuple builds a tensor": START + b"ctorch._tensor\n_rebuild_from_type_v2\n()" + DOUBLE
    + b"N)NtR.",
    # One byte makes 216: 14 MB would be 3 GB.
    "many sets": START + b"\x8f" * 1_100_000 + b".",
    "many memories": START + b"N" + b"\x94" * 1_100_000 + b".",
    # Copies of one list, by reference to it.
    "copies of a list": START + b"(" + b"N" * 100_000 + b"lq\x00" + b"cbuiltins\nlist\nq\x01"
    + b"h\x01h\x00\x85R" * 10_000 + b".",
    "copies of a text": START + text("x" * 1_000_000) + b"q\x00" + b"c_codecs\nencode\nq\x01"
    + b"h\x01h\x00\x85R" * 10_000 + b".",
    # Whole numbers that share one hash make a table as slow as a list.
    "keys of one hash": START + b"}("
    + b"".join(b"\x8a\x0b" + (k * ((1 << 61) - 1)).to_bytes(11, "little") + b"N"
               for k in range(1, 100_000)) + b"u.",
    "long number": START + b"I" + b"9" * 5000 + b"\n.",
    "long text as a number": START + b"F" + b"x" * 5_000_000 + b"\n.",
    "long name": START + b"c" + b"x" * 5_000_000 + b"\ny\n.",
}  # fmt: skip


def state(hyper: bytes) -> bytes:
    """Give a Lightning checkpoint with one empty tensor and these hyper-parameters."""
    tensor = (STATE + b"((" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
              + b"K\x00tQK\x00K\x00\x85K\x01\x85tR")  # fmt: skip
    return (START + b"}" + text("state_dict") + b"}" + text("w") + tensor + b"s" + b"s"
            + text("hyper_parameters") + hyper + b"s.")  # fmt: skip


SETTINGS: dict[str, bytes] = {
    "a list that contains itself": b"}" + text("a") + b"]q\x07h\x07as",
    "a table that contains itself": b"}q\x07" + text("a") + b"h\x07s",
    "a doubled tuple": b"}" + text("a") + b")" + DOUBLE + b"s",
    "a deep tuple": b"}" + text("a") + b")" + DEEP + b"s",
}


def archive(path: Path, program: bytes, members: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", program)
        for name, content in {"a/version": b"3\n", "a/data/0": b"", **(members or {})}.items():
            file.writestr(name, content)
    return path


def refused(read: Callable[[], Any], limit: int | None = None) -> str:
    """Give the message of the refusal, which is short, and had little memory."""
    if limit:
        tracemalloc.start()
    try:
        with pytest.raises(MegabaseError) as caught:
            read()
        assert not limit or tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < 1000
    return str(caught.value)


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_hostile_program_is_refused(tmp_path: Path, name: str) -> None:
    limit = 200 << 20 if name.startswith("copies") else None
    file = archive(tmp_path / "a.ckpt", PROGRAMS[name])
    assert "a.ckpt" in refused(lambda: read_weights(file), limit)
    if not name.startswith("many"):
        file.write_bytes(PROGRAMS[name])  # without the archive around it
        assert "a.ckpt" in refused(lambda: read_weights(file), limit)


@pytest.mark.parametrize("name", SETTINGS)
def test_hostile_settings_are_refused(tmp_path: Path, name: str) -> None:
    file = archive(tmp_path / "a.ckpt", state(SETTINGS[name]))
    assert "settings" in refused(lambda: read_weights(file))
    good = archive(tmp_path / "b.ckpt", state(b"}" + text("a") + b"K\x01s"))
    assert read_weights(good).hyper_parameters == {"a": 1}


def claim(path: Path, name: bytes, size: int) -> Path:
    """Let the list of members claim a size for one of them."""
    raw = bytearray(path.read_bytes())
    at = raw.find(b"PK\x01\x02")
    while raw[at + 46 : at + 46 + len(name)] != name:
        at = raw.find(b"PK\x01\x02", at + 1)
    raw[at + 20 : at + 28] = struct.pack("<II", size, size)
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("member", ["a/data.pkl", "a/data/0", "a/byteorder"])
def test_a_member_that_claims_four_gigabytes_takes_none(tmp_path: Path, member: str) -> None:
    file = archive(tmp_path / "a.ckpt", state(b"}"), {"a/byteorder": b"little"})
    claim(file, member.encode(), 4_000_000_000)
    assert "4,000,000,000" in refused(lambda: read_weights(file), 10 << 20)


def test_members_over_the_same_bytes_are_not_read_again_and_again(tmp_path: Path) -> None:
    parts = b"".join(
        b"(" + text("storage") + b"ctorch\nByteStorage\n" + text(str(i)) + text("cpu") + b"K\x00tQ"
        for i in range(500)
    )
    file = archive(tmp_path / "a.ckpt", START + parts + b".", {"a/data/0": bytes(1_000_000)})
    with zipfile.ZipFile(file, "a") as opened:
        first = opened.getinfo("a/data/0")
        for i in range(1, 500):
            copy = zipfile.ZipInfo(f"a/data/{i}")
            copy.header_offset, copy.CRC = first.header_offset, first.CRC
            copy.file_size = copy.compress_size = first.file_size
            opened.filelist.append(copy)
            opened.NameToInfo[copy.filename] = copy
        opened._didModify = True
    refused(lambda: read_weights(file), 10 << 20)


def test_a_compressed_program_is_not_unpacked(tmp_path: Path) -> None:
    file = tmp_path / "a.ckpt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("a/data.pkl", START + b"N0" * 20_000_000 + b"N.")
    assert file.stat().st_size < 200_000
    assert "compressed" in refused(lambda: read_weights(file), 10 << 20)


def test_a_list_of_members_is_bounded(tmp_path: Path) -> None:
    file = archive(tmp_path / "a.ckpt", START + b"N.")
    raw = bytearray(file.read_bytes())
    raw[-10:-6] = struct.pack("<I", 50_000_000)
    file.write_bytes(raw)
    refused(lambda: read_weights(file), 10 << 20)


def test_an_expanded_tensor_is_bounded(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(1).expand(10**12)}, buffer)
    (tmp_path / "a.ckpt").write_bytes(buffer.getvalue())
    assert "elements" in refused(lambda: read_weights(tmp_path / "a.ckpt"))
    torch.save({"w": torch.arange(3).expand(4, 3)}, tmp_path / "b.ckpt")
    assert read_weights(tmp_path / "b.ckpt").tensors["w"].shape == (4, 3)


# -------------------------------------------------------------------------------- model folders


def folder(path: Path, **settings: Any) -> Path:
    """Copy the packaged model, with some settings of its config.json changed."""
    shutil.copytree(DEFAULT_MODEL, path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **settings}))
    return path


@pytest.mark.parametrize(
    "settings",
    [
        {"num_labels": 9223372036854775808},
        {"num_labels": 10**9},
        {"id2label": None, "num_labels": 10**7},
        {"vocab_size": 2**31},
        {"pad_vocab_size_multiple": 2**40},
        {"n_layer": 10**9},
        {"num_hidden_layers": 10**9},
        {"num_inner_mlps": 10**9},
        {"hyena_order": 10**9},
        {"max_seq_len": 2**60},
        {"attention_layers": [2**70]},
        {"attn_implementation": "kernels-community/x"},
        {"_attn_implementation": "flash_attention_2"},
        {"attn_implementation": {"": "kernels-community/x"}},
        {"quantization_config": {"quant_method": "awq"}},
        {"transformers_weights": "../other.safetensors"},
        {"architectures": 5},
        {"architectures": [["a"]]},
        {"id2label": [1]},
        {"id2label": {"x": "a"}},
        {"to_dict": 1},
        {"d_model": "wide"},
        {"d_model": None},
        {"attention_layers": 5},
        {"model_type": ["hyenadna"]},
        {"dtype": "load"},
        {"layer_norm_epsilon": {}},
    ],
    ids=repr,
)
def test_settings_of_no_model_are_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    path = folder(tmp_path / "m", **settings)
    assert "config" in refused(lambda: load_config(path) and load_model(path))
    refused(lambda: describe(path))


def test_settings_of_a_larger_model_than_the_weights_allocate_nothing(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", max_seq_len=2**31 - 1, d_model=2**15)
    assert "different models" in refused(lambda: load_model(path), 100 << 20)


def test_code_that_a_folder_names_is_left_out(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", auto_map={"AutoConfig": "x.Y"}, _attn_implementation_autoset=True)
    assert not hasattr(load_config(path), "auto_map")
    assert "auto_map" not in load_model(path).config.to_dict()


def test_pickled_weights_of_a_folder_meet_the_restricted_reader(tmp_path: Path) -> None:
    path = folder(tmp_path / "m")
    state = read_weights(path).tensors
    (path / "model.safetensors").unlink()
    torch.save(state, path / "pytorch_model.bin")
    assert torch.equal(load_model(path).state_dict()[(name := next(iter(state)))], state[name])
    program = START + b"cos\nsystem\n" + text(f"touch {tmp_path / 'ran'}") + b"\x85R."
    archive(path / "pytorch_model.bin", program)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: .*os\.system"):
        load_model(path)
    index = {"weight_map": dict.fromkeys(state, "part.bin")}
    (path / "pytorch_model.bin").rename(path / "part.bin")
    (path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"part\.bin: .*os\.system"):
        load_model(path)
    assert not (tmp_path / "ran").exists()
    for place in (
        "../part.bin",
        str(tmp_path / "part.bin"),
        "part.txt",
        5,
        None,
        ["part.bin"],
        "x" * 999 + ".bin",
    ):
        (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"w": place}}))
        with pytest.raises(CheckpointError, match="not next to it"):
            load_model(path)


def test_a_sharded_folder_of_links_is_read(tmp_path: Path) -> None:
    path = folder(tmp_path / "m")
    state = read_weights(path).tensors
    (path / "model.safetensors").rename(tmp_path / "blob")  # as the Hub's cache keeps files
    (path / "a.safetensors").symlink_to(tmp_path / "blob")
    index = {"weight_map": dict.fromkeys(state, "a.safetensors")}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert set(load_model(path).state_dict()) == set(load_model(DEFAULT_MODEL).state_dict())


def test_an_adapter_beside_the_weights_is_not_followed(tmp_path: Path) -> None:
    path = folder(tmp_path / "m")
    adapter = {"base_model_name_or_path": "someone/else", "peft_type": "LORA"}
    (path / "adapter_config.json").write_text(json.dumps(adapter))
    assert load_model(path).config.name_or_path == str(path)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("content", "says"), [(POINTER, "git lfs pull"), ("<!DOCTYPE html><html>", "an HTML page")]
)
def test_pointers_and_pages_are_recognized(
    tmp_path: Path, name: str, content: str, says: str
) -> None:
    path = folder(tmp_path / "m")
    (path / name).write_text(content)
    for read in (load_tokenizer, load_model, describe):
        if read is load_model and name.startswith("tok"):
            continue
        if read is load_tokenizer and name.startswith("model"):
            continue
        message = refused(lambda read=read: read(path))
        assert says in message
        assert name in message
    for kind in (".ckpt", ".pt", ".bin"):
        (tmp_path / f"w{kind}").write_text(content)
        assert says in refused(lambda kind=kind: read_weights(tmp_path / f"w{kind}"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", b"[1]"),
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b"\xff\xfe{}"),
        ("tokenizer_config.json", b"[" * 100_000),
        ("tokenizer_config.json", b'{"tokenizer_class": "LlamaTokenizer"}'),
        ("tokenizer_config.json", b'{"tokenizer_class": ["DNATokenizer"]}'),
        ("tokenizer_config.json", b'{"added_tokens_decoder": [1]}'),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"x": {"content": "a"}}}'),
        ("tokenizer_config.json", b'{"added_tokens_decoder": {"0": 5}}'),
        ("tokenizer_config.json", b'{"pad_token": {"a": 1}}'),
        ("tokenizer_config.json", b'{"characters": 5}'),
        ("tokenizer_config.json", b'{"special_tokens": ["a"]}'),
        ("tokenizer_config.json", b'{"padding_side": 5}'),
        ("special_tokens_map.json", b"{"),
        ("special_tokens_map.json", b"\xff"),
        ("special_tokens_map.json", b"[5]"),
        ("added_tokens.json", b"[5]"),
    ],
)
def test_odd_tokenizer_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    path = folder(tmp_path / "m")
    if not name.startswith("tokenizer"):
        (path / "tokenizer_config.json").write_text('{"tokenizer_class": "DNATokenizer"}')
    (path / name).write_bytes(content)
    assert str(path) in refused(lambda: load_tokenizer(path))
