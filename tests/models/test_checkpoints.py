from __future__ import annotations

import argparse
import collections
import contextlib
import io
import os
import pathlib
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from megabase.errors import CheckpointError
from megabase.models.checkpoints.reader import _read_pickle, read_weights, require_fit
from megabase.models.checkpoints.unpickle import plain


def make_module() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))
    module[1].weight = nn.Parameter(torch.randn(3, 4))
    return module


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_are_read_as_torch_reads_them(tmp_path: Path, zipped: bool) -> None:
    shared = torch.randn(4, 6)
    content = {
        "module": make_module().state_dict(),
        "transposed": shared.t(),
        "slice": shared[1:3, ::2],
        "scalar": torch.tensor(3.5, dtype=torch.float64),
        "empty": torch.empty(0, 3),
        "ints": torch.arange(5),
        "bools": torch.tensor([True, False]),
        "half": torch.randn(3).half(),
        "bfloat": torch.randn(3).bfloat16(),
        "parameter": nn.Parameter(torch.ones(2)),
        "nested": [{"deep": (torch.ones(1), None, "text", 2.5, 10**20, {1, 2})}],
    }
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    got = _read_pickle(tmp_path / "a.pt")
    for key in ("transposed", "slice", "scalar", "empty", "ints", "bools", "half", "bfloat"):
        assert torch.equal(got[key], content[key]), key
        assert got[key].dtype == content[key].dtype
    assert torch.equal(got["parameter"], torch.ones(2))
    for name, tensor in content["module"].items():
        assert torch.equal(got["module"][name], tensor)
    assert got["nested"][0]["deep"][1:] == (None, "text", 2.5, 10**20, {1, 2})


def test_tied_tensors_share_memory(tmp_path: Path) -> None:
    tensor = torch.randn(3)
    torch.save({"a": tensor, "b": tensor}, tmp_path / "a.pt")
    got = _read_pickle(tmp_path / "a.pt")
    assert got["a"].data_ptr() == got["b"].data_ptr()


def test_a_training_checkpoint_is_read_with_inert_objects(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    module = make_module()
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    settings = OmegaConf.create(
        {
            "model": {
                "d_model": 3,
                "layer": {"l_max": 66, "lr": "${optimizer.lr}"},
                "list": [1, None],
            }
        }
    )
    torch.save(
        {
            "state_dict": module.state_dict(),
            "hyper_parameters": settings,
            "optimizer_states": [optimizer.state_dict()],
            "numpy": (np.float64(2.5), np.arange(3), np.bool_(True)),
            "path": pathlib.PurePosixPath("/somewhere"),
            "namespace": argparse.Namespace(rate=1),
            "counts": collections.defaultdict(int, a=1),
            "type": torch.float32,
            "size": torch.Size([1, 2]),
            "device": torch.device("cpu"),
        },
        tmp_path / "a.ckpt",
    )
    content = _read_pickle(tmp_path / "a.ckpt")
    assert str(content["path"].origin).startswith("pathlib")
    assert content["counts"] == {"a": 1}
    assert content["type"] is torch.float32
    for value, name in zip(content["numpy"], ("scalar", "_reconstruct", "scalar"), strict=True):
        assert str(value.origin).endswith(f"core.multiarray.{name}")
    assert plain(content["hyper_parameters"]) == {
        "model": {"d_model": 3, "layer": {"l_max": 66, "lr": "${optimizer.lr}"}, "list": [1, None]}
    }
    moments = content["optimizer_states"][0]["state"][0]["exp_avg"]
    assert torch.equal(moments, optimizer.state_dict()["state"][0]["exp_avg"])
    weights = read_weights(tmp_path / "a.ckpt")
    assert set(weights.tensors) == set(module.state_dict())
    assert weights.hyper_parameters["model"]["d_model"] == 3


# ---------------------------------------------------------------------------- harmful checkpoints


class Reduces:
    """Pickles into a call of whatever it is given."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def stack_global(module: str, name: str) -> bytes:
    parts = (pickle.SHORT_BINUNICODE + struct.pack("<B", len(text)) + text.encode()
             for text in (module, name))  # fmt: skip
    return b"".join(parts) + pickle.STACK_GLOBAL


def touch(marker: Path) -> str:
    return f"open({str(marker)!r}, 'w').close()"


def raw_programs(marker: Path) -> dict[str, tuple[bytes, str]]:
    """Hand-written pickles: (program, what the error must name)."""
    code = touch(marker).encode()
    text = pickle.BINUNICODE + struct.pack("<I", len(code)) + code
    start = pickle.PROTO + b"\x04"
    one = pickle.TUPLE1 + pickle.REDUCE + pickle.STOP
    evaluate = stack_global("builtins", "eval")
    return {
        "global": (b"\x80\x02cbuiltins\nexec\n" + text + one, "builtins.exec"),
        "old name": (b"\x80\x02c__builtin__\neval\n" + text + one, "__builtin__.eval"),
        "inst": (b"(" + text + b"iposix\nsystem\n.", "posix.system"),
        "obj": (b"(cos\nsystem\n" + text + b"o.", "os.system"),
        "newobj": (start + evaluate + text + pickle.TUPLE1 + pickle.NEWOBJ + b".", "builtins.eval"),
        "dotted": (start + stack_global("torch._utils", "_rebuild_tensor.__globals__") + b".",
                   "__globals__"),
        "getattr": (start + stack_global("builtins", "getattr") + b".", "builtins.getattr"),
        "import": (start + stack_global("importlib", "import_module") + b".", "importlib"),
        "extension": (b"\x80\x02" + pickle.EXT1 + b"\x01.", "EXT1"),
        # A known builder asked to call something else.
        "rebuild from type": (
            start + stack_global("torch._tensor", "_rebuild_from_type_v2") + pickle.MARK
            + evaluate + pickle.NONE + text + pickle.TUPLE1 + pickle.NONE + pickle.TUPLE
            + pickle.REDUCE + b".", "builtins.eval"),
        "rebuild with a type name": (
            start + stack_global("torch._tensor", "_rebuild_from_type_v2") + pickle.MARK
            + stack_global("builtins", "int") + pickle.NONE + text + pickle.TUPLE1 + pickle.NONE
            + pickle.TUPLE + pickle.REDUCE + b".", "builtins.int"),
        # State set on a thing that takes none.
        "build on a class": (
            start + stack_global("collections", "OrderedDict") + pickle.EMPTY_DICT + pickle.BUILD
            + b".", "sets attributes"),
        # A record is not a function.
        "call a record": (
            start + stack_global("omegaconf.x", "Y") + pickle.EMPTY_TUPLE + pickle.REDUCE
            + pickle.EMPTY_TUPLE + pickle.REDUCE + b".", "which is not a class"),
    }  # fmt: skip


def write_archive(path: Path, program: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3\n")
    return path


def write_stream(path: Path, program: bytes) -> Path:
    head = (pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2),
            pickle.dumps({"little_endian": True}, 2))  # fmt: skip
    path.write_bytes(b"".join(head) + program + pickle.dumps([], 2))
    return path


@pytest.mark.parametrize("name", sorted(raw_programs(Path("x"))))
@pytest.mark.parametrize("form", ["archive", "stream", "bare"])
def test_a_harmful_program_is_refused_and_not_run(tmp_path: Path, name: str, form: str) -> None:
    marker = tmp_path / "marker"
    program, named = raw_programs(marker)[name]
    file = tmp_path / "a.ckpt"
    if form == "archive":
        write_archive(file, program)
    elif form == "stream":
        write_stream(file, program)
    else:
        file.write_bytes(program)
    with pytest.raises(CheckpointError) as caught:
        _read_pickle(file)
    assert named in str(caught.value)
    assert not marker.exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "place", ["top", "beside the weights", "inside a list", "as an argument", "as a key"]
)
def test_a_harmful_object_in_a_real_checkpoint_is_refused(
    tmp_path: Path, zipped: bool, place: str
) -> None:
    marker = tmp_path / "marker"
    bad = Reduces(os.system, f"touch {marker}")
    state = {"weight": torch.ones(2)}
    content: Any = {
        "top": bad,
        "beside the weights": {"state_dict": state, "callbacks": bad},
        "inside a list": {"state_dict": {**state, "extra": [1, [bad]]}},
        "as an argument": {
            "state_dict": state,
            "x": Reduces(collections.OrderedDict, [("a", bad)]),
        },
        "as a key": {"state_dict": state, bad: 1},
    }[place]
    file = tmp_path / "a.ckpt"
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="system"):
        read_weights(file)
    assert not marker.exists()
    # The same file does harm elsewhere: the test would notice if it were harmless.
    torch.load(file, weights_only=False)
    assert marker.exists()


def test_a_pickled_model_is_refused_with_advice(tmp_path: Path) -> None:
    torch.save(make_module(), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"torch\.nn.*state_dict"):
        _read_pickle(tmp_path / "a.pt")


# ------------------------------------------------------------------------------- damaged files


def saved(tmp_path: Path, zipped: bool = True) -> Path:
    file = tmp_path / "a.ckpt"
    torch.save({"state_dict": make_module().state_dict()}, file,
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    return file


@pytest.mark.parametrize("zipped", [True, False])
def test_every_cut_of_a_file_is_an_error(tmp_path: Path, zipped: bool) -> None:
    file = saved(tmp_path, zipped)
    whole = file.read_bytes()
    for length in sorted({0, 1, 10, *range(50, len(whole), len(whole) // 25), len(whole) - 1}):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"a\.ckpt"):
            read_weights(file)


def test_random_damage_never_gets_past_the_reader(tmp_path: Path) -> None:
    file = saved(tmp_path, zipped=False)
    whole = bytearray(file.read_bytes())
    draws = np.random.default_rng(0)
    for _ in range(200):
        broken = bytearray(whole)
        for position in draws.integers(0, 400, size=3):
            broken[position] = draws.integers(0, 256)
        file.write_bytes(broken)
        with contextlib.suppress(CheckpointError):  # or it is read, when the damage is harmless
            read_weights(file)


def test_a_storage_that_claims_too_much_is_an_error(tmp_path: Path) -> None:
    program = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return obj if isinstance(obj, tuple) and obj and obj[0] == "storage" else None

    storage = ("storage", torch.FloatStorage, "0", "cpu", 10**12)
    Pickler(program, 2).dump({"state_dict": storage})
    with pytest.raises(CheckpointError, match="storage '0'"):
        _read_pickle(write_archive(tmp_path / "a.ckpt", program.getvalue()))
    with pytest.raises(CheckpointError, match="storage '0'"):
        _read_pickle(write_stream(tmp_path / "b.ckpt", program.getvalue()))


def test_other_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        read_weights(tmp_path / "missing.ckpt")
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"text\.ckpt"):
        read_weights(tmp_path / "text.ckpt")
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(CheckpointError, match=r"text\.safetensors"):
        read_weights(tmp_path / "text.safetensors")
    torch.save({"epoch": 3}, tmp_path / "empty.ckpt")
    with pytest.raises(CheckpointError, match=r"no state dict.*epoch"):
        read_weights(tmp_path / "empty.ckpt")
    torch.jit.save(torch.jit.script(nn.Identity()), tmp_path / "script.pt")
    with pytest.raises(CheckpointError, match="TorchScript"):
        read_weights(tmp_path / "script.pt")


def test_folders(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected weights"):
        read_weights(tmp_path)
    save_file({"a": torch.ones(1)}, tmp_path / "one.safetensors")
    assert set(read_weights(tmp_path).tensors) == {"a"}
    save_file({"b": torch.ones(1)}, tmp_path / "two.safetensors")
    with pytest.raises(CheckpointError, match=r"one\.safetensors, two\.safetensors"):
        read_weights(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}')
    (tmp_path / "config.json").write_text('{"d_model": 1}')
    weights = read_weights(tmp_path)
    assert set(weights.tensors) == {"a", "b"}
    assert weights.config == {"d_model": 1}
    index.write_text('{"weight_map": {"a": "../one.safetensors"}}')
    with pytest.raises(CheckpointError, match="not next to it"):
        read_weights(tmp_path)


def test_a_misfit_names_everything() -> None:
    with pytest.raises(CheckpointError, match=r"missing: b; unexpected: d; of another shape: a is"):
        require_fit("file", "Model", ["b"], ["d"], [("a", (2,), (3,))])
    with pytest.raises(CheckpointError, match=r"n49 and 150 more"):
        require_fit("file", "Model", [f"n{i}" for i in range(200)], [], [])
    require_fit("file", "Model", [], [], [])
