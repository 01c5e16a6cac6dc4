"""Checkpoints from strangers: whatever the pickle asks for, nothing runs, and the message names it."""

import io
import os
import pickle
import struct
import subprocess
import zipfile

import pytest
import torch

from posefoundry.errors import PosefoundryError
from posefoundry.models import load_model
from posefoundry.models.pickle_reader import Structure, read_checkpoint


def archive(path, program, records=None, *, folder="model", compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr(f"{folder}/data.pkl", program)
        file.writestr(f"{folder}/byteorder", "little")
        for name, content in (records or {}).items():
            file.writestr(f"{folder}/{name}", content)
    return path


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch {canary}",), "(posix|nt).system"),
        (eval, ("open('{canary}', 'w')",), "(builtins|__builtin__).eval"),
        (exec, ("open('{canary}', 'w')",), "(builtins|__builtin__).exec"),
        (getattr, ("text", "upper"), "(builtins|__builtin__).getattr"),
        (
            subprocess.Popen,
            (["touch", "{canary}"],),
            "(subprocess|commands).Popen",
        ),  # older protocols write the name of Python 2
        (torch.load, ("{canary}",), "torch.serialization.load"),
        (torch.hub.load, ("{canary}",), "torch.hub.load"),
        (io.open, ("{canary}", "w"), "_?io.open"),
        (pickle.loads, (b"",), "_?pickle.loads"),
    ],
)
def test_a_call_is_refused_by_name_and_not_made(tmp_path, protocol, function, arguments, name):
    canary = tmp_path / "canary"
    arguments = [a.format(canary=canary) if isinstance(a, str) else a for a in arguments]
    program = pickle.dumps({"model": Calls(function, *arguments)}, protocol=protocol)
    with pytest.raises(PosefoundryError, match=f"asks for '{name}'.*nothing was run"):
        load_model(archive(tmp_path / "model.pt", program))
    assert not canary.exists()


def test_the_control_really_is_an_attack(tmp_path):
    canary = tmp_path / "canary"
    pickle.loads(pickle.dumps(Calls(os.system, f"touch {canary}")))
    assert canary.exists()


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (b"(S'touch canary'\nios\nsystem\n.", "the opcode STRING"),
        (b"\x80\x02(X\x05\x00\x00\x00touchios\nsystem\n.", "the opcode INST"),
        (b"\x80\x02\x82\x01.", "the opcode EXT1"),
        (b"\x80\x02P1\n.", "the opcode PERSID"),
        (b"\x80\x02K\x01K\x02\x86b.", "damaged"),
        (b"\x80\x02K\x01)R.", "something that is not a class"),
        (b"\x80\x02cbuiltins\nset\n)\x81.", "something that is not a class"),
        (b"\x80\x02ccollections\nOrderedDict\n)R}b", "damaged"),
        (b"\x80\x02N", "damaged"),
        (b"\x80\x02h\x05.", "damaged"),
        (b"", "damaged"),
        (b"not a pickle", "damaged"),
    ],
)
def test_programs_beyond_data_are_refused(tmp_path, program, words):
    with pytest.raises(PosefoundryError, match=words):
        read_checkpoint(archive(tmp_path / "model.pt", program))


def test_names_inside_the_admitted_packages_stay_inert(tmp_path):
    """A dotted attribute under an admitted prefix would reach anything if it were looked up; it never is."""
    canary = tmp_path / "canary"
    command = f"touch {canary}".encode()
    program = (
        b"\x80\x02ctorch.nn.modules.linear\ntorch.os.system\nX" + struct.pack("<I", len(command)) + command + b"\x85R."
    )
    found = read_checkpoint(archive(tmp_path / "model.pt", program))
    assert isinstance(found, Structure) and found.class_name == "torch.nn.modules.linear.torch.os.system"
    assert not canary.exists()


def test_a_memo_index_cannot_take_memory(tmp_path):
    program = b"\x80\x02}r" + struct.pack("<I", 2**31 - 1) + b"."
    assert read_checkpoint(archive(tmp_path / "model.pt", program)) == {}


def test_deep_nesting_is_data_or_refused(tmp_path):
    nested = b"\x80\x02)" + b"\x85" * 200_000
    read_checkpoint(archive(tmp_path / "deep.pt", nested + b"."))
    # Hashing it would overflow the stack.
    as_key = b"\x80\x02}" + nested[2:] + b"Ns."
    in_set = b"\x80\x04\x8f(" + nested[2:] + b"\x90."
    as_argument = b"\x80\x02cbuiltins\nset\n](" + nested[2:] + b"e\x85R."
    for program in (as_key, in_set, as_argument):
        with pytest.raises(PosefoundryError, match="a tuple as a key"):
            read_checkpoint(archive(tmp_path / "key.pt", program))


def tensor_program(size, stride, offset=0, length=4, storage="FloatStorage"):
    """A pickle of one tensor over storage 0, written by hand so that it may lie."""

    class Pid:
        def __init__(self, value):
            self.value = value

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return obj.value if isinstance(obj, Pid) else None

    class Tensor:
        def __reduce__(self):
            reference = Pid(("storage", getattr(torch, storage), "0", "cpu", length))
            return torch._utils._rebuild_tensor_v2, (reference, offset, size, stride, False, {})

    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump({"a": Tensor()})
    return stream.getvalue()


CONTENT = struct.pack("<4f", 1, 2, 3, 4)


def test_a_view_of_a_storage_is_cut_out(tmp_path):
    program = tensor_program((2, 1), (2, 1), offset=1)
    tensors = read_checkpoint(archive(tmp_path / "model.pt", program, {"data/0": CONTENT}))
    assert tensors["a"].tolist() == [[2.0], [4.0]]


@pytest.mark.parametrize(
    ("program", "records", "words"),
    [
        (tensor_program((5,), (1,)), {"data/0": CONTENT}, "beyond its storage"),
        (tensor_program((2,), (1,), offset=3), {"data/0": CONTENT}, "beyond its storage"),
        (tensor_program((2,), (2**40,)), {"data/0": CONTENT}, "beyond its storage"),
        (tensor_program((2**40,), (0,)), {"data/0": CONTENT}, "beyond its storage"),
        (tensor_program((2,), (-1,), offset=3), {"data/0": CONTENT}, "unknown form"),
        (tensor_program((-1,), (1,)), {"data/0": CONTENT}, "unknown form"),
        (tensor_program((2, 2), (1,)), {"data/0": CONTENT}, "unknown form"),
        (tensor_program((1,), (1,), length=5), {"data/0": CONTENT}, "expected 20 bytes in storage 0, got 16"),
        (tensor_program((1,), (1,)), {}, "expected a record data/0"),
    ],
)
def test_tensors_that_lie_about_their_storage_are_refused(tmp_path, program, records, words):
    with pytest.raises(PosefoundryError, match=words):
        read_checkpoint(archive(tmp_path / "model.pt", program, records))


def test_a_module_that_contains_itself_is_refused(tmp_path):
    head = b"\x80\x02}X\x05\x00\x00\x00modelcultralytics.nn\nM\n)\x81q\x01}X\x08\x00\x00\x00_modules}("
    twice = b"X\x01\x00\x00\x00ah\x01X\x01\x00\x00\x00bh\x01"
    with pytest.raises(PosefoundryError, match="contains itself"):
        load_model(archive(tmp_path / "model.pt", head + twice + b"usbs."))


def test_archives_of_another_form_are_refused(tmp_path):
    program = pickle.dumps({}, protocol=2)
    inner = archive(tmp_path / "inner.pt", program).read_bytes()
    cases = {
        "nested": ({"outer/inner.pt": inner}, "expected one data.pkl"),
        "two": ({"a/data.pkl": program, "b/data.pkl": program}, "expected one data.pkl"),
        "deep": ({"a/b/data.pkl": program}, "expected one data.pkl"),
        "big_endian": ({"a/data.pkl": program, "a/byteorder": b"big"}, "little-endian"),
    }
    for name, (records, words) in cases.items():
        path = tmp_path / f"{name}.pt"
        with zipfile.ZipFile(path, "w") as file:
            for record, content in records.items():
                file.writestr(record, content)
        with pytest.raises(PosefoundryError, match=words):
            read_checkpoint(path)
    with pytest.raises(PosefoundryError, match="compressed"):
        read_checkpoint(archive(tmp_path / "packed.pt", b"\0" * 10_000, compression=zipfile.ZIP_DEFLATED))


def test_files_that_are_no_checkpoint_are_refused(tmp_path):
    text = tmp_path / "text.pt"
    text.write_text("weights")
    old = tmp_path / "old.pt"
    torch.save({"a": torch.zeros(1)}, old, _use_new_zipfile_serialization=False)
    cut = tmp_path / "cut.pt"
    torch.save({"a": torch.zeros(1000)}, cut)
    cut.write_bytes(cut.read_bytes()[:2000])
    for path in (text, old, cut, tmp_path):
        with pytest.raises(PosefoundryError, match="in zip form"):
            read_checkpoint(path)
    with pytest.raises(PosefoundryError, match="found nothing there"):
        read_checkpoint(tmp_path / "missing.pt")


def test_what_torch_writes_is_read_back(tmp_path):
    content = {
        "float": torch.arange(6.0).view(2, 3).T, "half": torch.ones(2).half(), "long": torch.tensor(7),
        "empty": torch.empty(0, 3), "parameter": torch.nn.Parameter(torch.ones(1)),
        "plain": [1, 2.5, None, True, "text", (1, 2), {3}, -1, 2**40], "size": torch.Size([1, 2]),
    }  # fmt: skip
    torch.save(content, tmp_path / "model.pt")
    found = read_checkpoint(tmp_path / "model.pt")
    for name in ("float", "half", "long", "empty", "parameter"):
        assert torch.equal(found[name], content[name]) and found[name].dtype == content[name].dtype
    assert found["plain"] == content["plain"] and found["size"] == (1, 2)
