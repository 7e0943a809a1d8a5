"""Plain data come back as they were; anything a pickle could do beyond that is refused before it happens."""

from __future__ import annotations

import collections
import copyreg
import datetime
import hashlib
import os
import pickle
import struct
import types

import numpy as np
import pytest

from moodal.core.errors import DataError
from moodal.interop.unpickle import RefusedPickle, load_plain

PLAIN = {
    "none": None,
    "numbers": [True, -3, 2**70, 1.5, float("-inf")],
    "bytes": [b"\x00\xff", b""],
    "set": {1, 2},
    "frozen": frozenset("ab"),
    "ordered": collections.OrderedDict(a=1, b=[2]),
    "floats": np.arange(12, dtype=np.float32).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big_endian": np.arange(3, dtype=">i4"),
    "flags": np.array([True, False]),
    "strings": np.array(["good", "坏"]),
    "byte_strings": np.array([b"ab", b"c"]),
    "texts": np.array(["a film", "好"], dtype=object),
    "lists": np.array([[1, 2], [3], None], dtype=object),
    "scalar": np.float64(0.25),
    "text_scalar": np.str_("word"),
    "empty": np.zeros((0, 5), np.float32),
    "zero_dim": np.array(3.0),
}


class Call:
    """Pickles as a call of ``function(*args)``."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def load(tmp_path, data: bytes):
    path = tmp_path / "data.pkl"
    path.write_bytes(data)
    return load_plain(path)[0]


def same(one, two) -> bool:
    if isinstance(two, np.ndarray):
        return (
            type(one) is np.ndarray
            and one.dtype == two.dtype
            and one.shape == two.shape
            and one.tolist() == two.tolist()
        )
    return type(one) is type(two) and one == two


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_come_back(tmp_path, protocol):
    found = load(tmp_path, pickle.dumps(PLAIN, protocol=protocol))
    assert list(found) == list(PLAIN)
    assert [key for key in PLAIN if not same(found[key], PLAIN[key])] == []


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_old_and_new_module_names_of_numpy(tmp_path, protocol):
    data = pickle.dumps([np.arange(3.0), np.float32(1)], protocol=protocol)
    for old, new in ((b"numpy._core", b"numpy.core"), (b"numpy.core", b"numpy._core")):
        if protocol == 0:
            renamed = data.replace(old, new)
        else:  # also the length byte of a short string
            renamed = data
            for part in (b".multiarray", b".numeric"):
                a, b = old + part, new + part
                renamed = renamed.replace(b"\x8c" + bytes([len(a)]) + a, b"\x8c" + bytes([len(b)]) + b).replace(
                    b"c" + a, b"c" + b
                )
        if protocol >= 4:  # frames announce their length
            renamed = pickle.PROTO + bytes([protocol]) + renamed[11:]
        array, scalar = load(tmp_path, renamed)
        assert array.tolist() == [0, 1, 2] and scalar == 1


def test_python_2_array_of_byte_string(tmp_path):
    data = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85"
        b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08"
        + np.array([1.5, -2], "<f4").tobytes()
        + b"tb."
    )
    assert load(tmp_path, data).tolist() == [1.5, -2.0]


def test_an_array_held_twice_stays_one(tmp_path):
    array = np.arange(4.0)
    one, two = load(tmp_path, pickle.dumps([array, array], protocol=2))
    assert one is two and one.tolist() == [0, 1, 2, 3]


def test_checksum_covers_the_whole_file_and_progress_reaches_its_end(tmp_path):
    path, seen = tmp_path / "data.pkl", []
    path.write_bytes(pickle.dumps(np.zeros(1000)) + b"rest")
    _, checksum = load_plain(path, progress=lambda done, size: seen.append((done, size)))
    size = path.stat().st_size
    assert checksum == hashlib.sha256(path.read_bytes()).hexdigest()
    assert seen[-1] == (size, size)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    ("hostile", "name"),
    [
        (lambda mark: Call(os.system, f"touch {mark}"), "posix.system|nt.system"),
        (lambda mark: Call(eval, f"open({str(mark)!r}, 'w')"), "(__builtin__|builtins).eval"),
        (lambda mark: Call(exec, f"open({str(mark)!r}, 'w')"), "exec"),
        (lambda mark: Call(open, str(mark), "w"), "open"),
        (lambda mark: Call(getattr, "a", "upper"), "getattr"),
        (lambda mark: {"train": [{"audio": (1, Call(os.mkdir, str(mark)))}]}, "mkdir"),
        (lambda mark: np.array([Call(os.mkdir, str(mark))], dtype=object), "mkdir"),
        (lambda mark: Call(np.memmap, str(mark), "u1", "w+", 0, (4,)), "numpy.memmap"),
        (lambda mark: Call(np.save, str(mark), [1]), "numpy.save"),
        (lambda mark: Call(np.load, str(mark)), "numpy.load"),
        (lambda mark: datetime.date(2020, 1, 1), "datetime.date"),
        (lambda mark: types.SimpleNamespace(a=1), "(types|builtins|_types).*SimpleNamespace|copyreg"),
    ],
)
def test_calls_are_refused_by_name_and_not_made(tmp_path, protocol, hostile, name):
    mark = tmp_path / "ran"
    with pytest.raises(RefusedPickle, match=name):
        load(tmp_path, pickle.dumps(hostile(mark), protocol=protocol))
    assert not mark.exists()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"cnumpy\ntestutils\n.", "numpy.testutils"),
        (b"cnumpy.core.multiarray\nfromfile\n.", "fromfile"),
        (b"cnumpy\nndarray.tofile\n.", "ndarray.tofile"),
        (b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.", "dtype.__init__"),
        (b"(S'ls'\nios\nsystem\n.", "instruction"),  # INST
        (b"(cnumpy\ndtype\no.", "instruction"),  # OBJ
        (b"\x80\x02cnumpy\ndtype\n)\x81.", "instruction"),  # NEWOBJ
        (b"\x80\x02\x82\x01.", "instruction"),  # EXT1
        (b"\x80\x02\x84\x01\x00\x00\x00.", "instruction"),  # EXT4
        (b"Pname\n.", "instruction"),  # PERSID
        (b"K\x01Q.", "instruction"),  # BINPERSID
        (b"\x80\x05\x97.", "instruction"),  # NEXT_BUFFER
        (b"ccollections\nOrderedDict\n)R}X\x01\x00\x00\x00aK\x01sb.", "state of a OrderedDict"),
        (b"cnumpy\ndtype\n}X\x01\x00\x00\x00aK\x01sb.", "state of a"),  # changing what the table holds
        (b"cnumpy\ndtype\nN}X\x09\x00\x00\x00_functionK\x01s\x86b.", "state of a"),
        (b"X\x01\x00\x00\x00aK\x01b.", "state of a str"),
        (b"cnumpy\ndtype\nX\x03\x00\x00\x00V16\x85R.", "V16"),
        (b"cnumpy\ndtype\nX\x02\x00\x00\x00M8\x85R.", "M8"),
        (b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.", "hex"),
    ],
)
def test_instructions_beyond_plain_data_are_refused(tmp_path, data, sentence):
    with pytest.raises(RefusedPickle, match=sentence):
        load(tmp_path, data)


def test_registered_extension_codes_are_refused(tmp_path):
    copyreg.add_extension("posix", "getpid", 0x7001)
    try:
        with pytest.raises(RefusedPickle, match="instruction"):
            load(tmp_path, b"\x80\x02\x83\x01\x70.")
    finally:
        copyreg.remove_extension("posix", "getpid", 0x7001)


def array_pickle(shape: bytes, dtype: bytes, data: bytes, order: bytes = b"<") -> bytes:
    kind = (
        b"cnumpy\ndtype\nX" + struct.pack("<I", len(dtype)) + dtype + b"\x85R(K\x03X\x01\x00\x00\x00" + order + b"NNNtb"
    )
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85X\x01\x00\x00\x00b\x87R(K\x01"
        + shape
        + kind
        + b"\x89"
        + data
        + b"tb."
    )


@pytest.mark.parametrize(
    "data",
    [
        array_pickle(b"J\xff\xff\xff\x7f\x85", b"f8", b"C\x04abcd"),  # a huge array of four bytes
        array_pickle(b"J\xff\xff\xff\xff\x85", b"f8", b"C\x00"),  # a negative size
        array_pickle(b"K\x01\x85", b"O", b"C\x08abcdefgh"),  # bytes as pointers
        array_pickle(b"K\x02\x85", b"O", b"]K\x01a"),
        array_pickle(b"K\x01\x85", b"U1", b"C\x04\xff\xff\xff\xff"),  # no such character
        array_pickle(b"K\x01\x85", b"f8", b"C\x08abcdefgh", order=b"x"),
        b"\x80\x05\x96" + struct.pack("<Q", 2**50) + b"x.",  # announces a petabyte
        b"\x80\x04\x8e" + struct.pack("<Q", 2**50) + b"x.",
        b"\x80\x04\x95" + struct.pack("<Q", 2**50) + b"x.",
        b"cnumpy\nndarray\nK\x05\x85R.",  # ndarray may be named, not called
        b"",
        b"\x80\x04",
        b"garbage",
        b"PK\x03\x04 a zip file",
        b"\x80\x63.",
        b"0.",
        b"}K\x01a.",
    ],
)
def test_damaged_files_give_a_sentence(tmp_path, data):
    with pytest.raises(DataError, match=r"not a readable pickle|instruction|state of"):
        load(tmp_path, data)


def test_every_truncation_gives_a_sentence(tmp_path):
    whole = pickle.dumps({"a": np.arange(5.0), "b": ["x", 1.5], "c": np.array(["y"], dtype=object)}, protocol=4)
    for end in range(len(whole)):
        with pytest.raises(DataError):
            load(tmp_path, whole[:end])


def test_random_damage_gives_data_or_a_sentence(tmp_path):
    whole = bytearray(pickle.dumps({k: v for k, v in PLAIN.items() if k != "numbers"}, protocol=2))
    random = np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] = random.integers(256)
        try:
            load(tmp_path, bytes(damaged))
        except DataError:
            continue


def test_absent_file_gives_a_sentence(tmp_path):
    with pytest.raises(DataError, match="could not be read"):
        load_plain(tmp_path / "none.pkl")
