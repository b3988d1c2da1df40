"""The disk cache: what is stored comes back whole or not at all."""

import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from torch.fx import Graph, GraphModule

from torch_max_backend import cache, compilation, environment
from torch_max_backend.options import MaxOptions

KEY = "ab" + "0" * 62
OTHER = "cd" + "1" * 62
ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_MAX_BACKEND_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCH_MAX_BACKEND_CACHE_SIZE", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def executable():
    return os.urandom(5000) + b"\nwith\x00lines\n"


def stored(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def path_of(folder, key=KEY):
    (path,) = [path for path in stored(folder) if key in path.name]
    return path


def test_what_is_stored_comes_back(executable):
    assert cache.load(KEY) is None
    cache.store(KEY, executable, ["graph1", "graph0"])
    assert cache.load(KEY) == executable
    assert cache.load(OTHER) is None


def test_a_second_store_replaces_the_first(executable):
    cache.store(KEY, executable, [])
    cache.store(KEY, executable[::-1], [])
    assert cache.load(KEY) == executable[::-1]


def test_an_executable_may_be_empty_or_hold_newlines():
    for data in (b"", b"\n", b"\n\n{}", b"{}\n"):
        cache.store(KEY, data, [])
        assert cache.load(KEY) == data


def test_graphs_have_a_place_once_stored(folder, executable):
    assert cache.place("graph0") is None
    cache.store(KEY, executable, ["graph0", "graph1"])
    assert cache.place("graph0") == cache.Place(KEY, 0)
    assert cache.place("graph1") == cache.Place(KEY, 1)
    assert cache.place("graph2") is None
    cache.store(OTHER, executable, ["graph1"])
    assert cache.place("graph1") == cache.Place(OTHER, 0), "the newest"
    path_of(folder, OTHER).unlink()
    assert cache.place("graph1") is None, "its program is gone"


@pytest.mark.parametrize("place", range(0, 200, 7))
def test_a_damaged_place_is_a_miss(folder, executable, place):
    """Another position would give another graph's results."""
    cache.store(KEY, executable, ["graph0", "graph1"])
    path = path_of(folder, "graph1")
    path.write_bytes(flipped(path.read_bytes(), place))
    assert cache.place("graph1") is None
    assert not path.exists()


def test_a_graph_known_in_another_environment_is_lowered_now(executable, monkeypatch):
    lowered = []
    monkeypatch.setattr(
        compilation.Program, "_build", lambda self, graph: lowered.append(graph.key)
    )
    graph = compilation._Pending("inference0", GraphModule({}, Graph()), "graph0", MaxOptions())
    cache.store(KEY, executable, [environment.program_key(["graph0"])])
    compilation.Program().add(graph)
    assert not lowered
    monkeypatch.setattr(environment, "environment", lambda: ("another release",))
    compilation.Program().add(graph)
    assert lowered == ["graph0"]


def test_graphs_are_found_wherever_they_were_compiled(executable, monkeypatch):
    """In another order, with others, and by several programs."""
    keys = {letter: environment.program_key([letter]) for letter in "abcd"}
    cache.store(KEY, b"first", [keys["a"], keys["b"]])
    cache.store(OTHER, b"second", [keys["c"]])
    monkeypatch.setattr(
        compilation, "load_models", lambda data: [(data, position) for position in range(2)]
    )
    monkeypatch.setattr(compilation, "_compile_module", lambda *args: compiles.append(args[1]))
    monkeypatch.setattr(compilation, "build_graph", lambda *args: (None, None))
    for letters, places in {
        "ba": [(b"first", 1), (b"first", 0)],
        "cb": [(b"second", 0), (b"first", 1)],
        "cd": None,  # one is not there
    }.items():
        program, compiles = compilation.Program(), []
        graphs = [
            compilation._Pending(letter, GraphModule({}, Graph()), letter, MaxOptions())
            for letter in letters
        ]
        for graph in graphs:
            program.add(graph)
        if places is None:
            program._ensure_compiled()
            assert compiles == [graphs[1:]]
            assert graphs[0].model == (b"second", 0)
        else:
            assert [program.model(graph) for graph in graphs] == places
            assert not compiles


def test_the_folder_is_the_one_of_the_flag(folder, executable, monkeypatch, tmp_path):
    cache.store(KEY, executable, [])
    assert len(stored(folder)) == 1
    monkeypatch.setenv("TORCH_MAX_BACKEND_CACHE_DIR", str(tmp_path / "second"))
    assert cache.directory() == tmp_path / "second"
    assert cache.load(KEY) is None
    monkeypatch.delenv("TORCH_MAX_BACKEND_CACHE_DIR")
    assert "torch_max_backend" in str(cache.directory())
    assert tmp_path not in cache.directory().parents


def test_clear(folder, executable):
    for key in (KEY, OTHER):
        cache.store(key, executable, [f"graph of {key}"])
    assert cache.clear() == 2
    assert cache.load(KEY) is None
    assert cache.place(f"graph of {KEY}") is None
    assert [path for path in folder.rglob("*") if path.is_file()] == []


def test_a_call_comes_back_beside_the_executable_of_its_key(executable):
    call = {"executable": OTHER, "outputs": [{"kind": "tensor", "offset": 0.5}, None]}
    cache.store(KEY, executable, [])
    cache.store_call(KEY, call)
    assert cache.load_call(KEY) == call
    assert cache.load(KEY) == executable
    assert cache.load_call(OTHER) is None
    count, size = cache.usage()
    assert count == 1 and size > len(executable) + 100
    assert cache.clear() == 1
    assert cache.load_call(KEY) is None


@pytest.mark.parametrize("place", range(0, 200, 7))
def test_a_damaged_call_is_a_miss(folder, place):
    cache.store_call(KEY, {"executable": OTHER, "weights": [1, 2, 3]})
    path = path_of(folder)
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 4
    path.write_bytes(data)
    assert cache.load_call(KEY) is None
    assert not path.exists()


def test_calls_make_room_too(monkeypatch, folder):
    cache.store_call(KEY, {"of": "an executable that was removed"})
    os.utime(path_of(folder), (1, 1))
    monkeypatch.setenv("TORCH_MAX_BACKEND_CACHE_SIZE", "100")
    cache.store(OTHER, bytes(500), [])
    assert cache.load_call(KEY) is None
    assert cache.load(OTHER) is not None


# ------------------------------------------------------------------------------------- damage


def head_and_tail(data):
    head, _, tail = data.partition(b"\n")
    return json.loads(head), tail


def rewritten(data, **changes):
    head, tail = head_and_tail(data)
    head.update(changes)
    return json.dumps({k: v for k, v in head.items() if v is not None}).encode() + b"\n" + tail


def flipped(data, place):
    place %= len(data)
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


DAMAGE = {
    "empty": lambda data: b"",
    "cut by a byte": lambda data: data[:-1],
    "cut in half": lambda data: data[: len(data) // 2],
    "head alone": lambda data: data[: data.index(b"\n") + 1],
    "half a head": lambda data: data[:20],
    "a byte more": lambda data: data + b"\x00",
    "last byte flipped": lambda data: flipped(data, -1),
    "middle byte flipped": lambda data: flipped(data, 3000),
    "first byte flipped": lambda data: flipped(data, 0),
    "another key": lambda data: rewritten(data, key=OTHER),
    "another format": lambda data: rewritten(data, format=99),
    "no checksum": lambda data: rewritten(data, sha256=None),
    "head is a list": lambda data: b"[]\n" + data,
    "head is a number": lambda data: b"7\n" + data,
    "head is no text": lambda data: b"\xff\xfe\n" + data,
    "no head": lambda data: os.urandom(4000).replace(b"\n", b" "),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_entry_is_a_miss_and_goes(folder, executable, caplog, kind):
    """MAX crashes the process on an altered executable: it must not see a byte of one."""
    cache.store(KEY, executable, [])
    path = path_of(folder)
    path.write_bytes(DAMAGE[kind](path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert cache.load(KEY) is None
    assert str(path) in caplog.text, "it is said"
    assert not path.exists()
    cache.store(KEY, executable, [])
    assert cache.load(KEY) == executable


def test_a_folder_in_the_place_of_an_entry(folder, executable):
    cache.store(KEY, executable, [])
    path = path_of(folder)
    path.unlink()
    path.mkdir()
    (path / "something").touch()
    cache.store(KEY, executable, [])  # cannot be written, and does not raise
    assert cache.load(KEY) is None
    cache.store(KEY, executable, [])
    assert cache.load(KEY) == executable


def test_a_file_in_the_place_of_the_folder(folder, executable, caplog):
    folder.write_text("no folder")
    with caplog.at_level(logging.WARNING):
        cache.store(KEY, executable, ["graph0"])
    assert "cannot write the compile cache" in caplog.text
    assert cache.load(KEY) is None
    assert cache.place("graph0") is None
    assert cache.clear() == 0


def test_a_folder_without_write_permission_costs_time_alone(folder, executable, caplog):
    folder.mkdir()
    folder.chmod(0o500)
    try:
        if os.access(folder, os.W_OK):  # root writes anywhere
            pytest.skip("this user may write to a read-only folder")
        with caplog.at_level(logging.WARNING):
            cache.store(KEY, executable, [])
    finally:
        folder.chmod(0o700)
    assert "cannot write the compile cache" in caplog.text
    assert cache.load(KEY) is None


@pytest.mark.parametrize("where", [(Path, "write_bytes"), (os, "replace")], ids=["write", "move"])
def test_a_full_disk_leaves_nothing_behind(folder, executable, caplog, monkeypatch, where):
    """Neither half an entry nor a temporary file."""

    def fail(*args, **kw):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(*where, fail)
        cache.store(KEY, executable, ["graph0"])
    assert "No space left on device" in caplog.text
    assert stored(folder) == []
    assert cache.load(KEY) is None
    assert cache.place("graph0") is None, "a graph is known only when an entry holds it"


def test_an_interrupt_leaves_no_temporary_file(folder, executable, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            cache.store(KEY, executable, [])
    assert stored(folder) == []


def test_the_entry_appears_at_once_or_not(folder, executable, monkeypatch):
    """The name exists only when the file is whole: it is renamed, not written in place."""
    seen = []
    replace = os.replace

    def spy(source, target):
        seen.append((Path(target).exists(), Path(source).stat().st_size))
        assert Path(source).parent == Path(target).parent, "a rename across disks is a copy"
        replace(source, target)

    monkeypatch.setattr(os, "replace", spy)
    cache.store(KEY, executable, [])
    assert seen == [(False, path_of(folder).stat().st_size)]


# ---------------------------------------------------------------------------------- the limit


def fill(count, size, monkeypatch, limit):
    keys = [f"{i:02x}" + "f" * 62 for i in range(count)]
    monkeypatch.setenv("TORCH_MAX_BACKEND_CACHE_SIZE", str(limit))
    for i, key in enumerate(keys):
        cache.store(key, os.urandom(size), [])
        past = time.time() - 1000 + i
        os.utime(path_of(cache.directory(), key), (past, past))
    return keys


def test_the_oldest_goes_first(monkeypatch):
    keys = fill(4, 1000, monkeypatch, 1 << 20)
    monkeypatch.setenv("TORCH_MAX_BACKEND_CACHE_SIZE", "3600")  # an entry is 1000 and its head
    cache.store(OTHER, os.urandom(1000), [])
    kept = [cache.load(key) is not None for key in [*keys, OTHER]]
    assert kept == [False, False, True, True, True]


def test_a_read_makes_an_entry_young(monkeypatch):
    keys = fill(4, 1000, monkeypatch, 1 << 20)
    assert cache.load(keys[0]) is not None
    monkeypatch.setenv("TORCH_MAX_BACKEND_CACHE_SIZE", "3600")
    cache.store(OTHER, os.urandom(1000), [])
    kept = [cache.load(key) is not None for key in [*keys, OTHER]]
    assert kept == [True, False, False, True, True]


def test_the_newest_stays_however_large(monkeypatch):
    keys = fill(2, 1000, monkeypatch, 1 << 20)
    monkeypatch.setenv("TORCH_MAX_BACKEND_CACHE_SIZE", "10")
    cache.store(OTHER, os.urandom(9000), ["graph0", "graph1"])
    assert [cache.load(key) is not None for key in [*keys, OTHER]] == [False, False, True]
    assert cache.place("graph0") == cache.Place(OTHER, 0)


def test_below_the_limit_nothing_goes(monkeypatch):
    keys = fill(5, 1000, monkeypatch, 1 << 20)
    assert all(cache.load(key) is not None for key in keys)


def test_entries_that_vanish_meanwhile_do_no_harm(monkeypatch, executable):
    """Another process may be shrinking the same folder."""
    keys = fill(3, 1000, monkeypatch, 1 << 20)
    monkeypatch.setenv("TORCH_MAX_BACKEND_CACHE_SIZE", "10")
    remove = cache._remove

    def twice(path):
        remove(path)
        remove(path)

    monkeypatch.setattr(cache, "_remove", twice)
    cache.store(OTHER, executable, [])
    assert cache.load(OTHER) is not None
    assert all(cache.load(key) is None for key in keys)


# -------------------------------------------------------------------------------- concurrency


def test_threads_that_write_and_read_one_key():
    """A reader sees one writer's entry or none, never a mixture."""
    executables = [bytes([i]) * 200_000 for i in range(4)]
    wrong = []

    def write(data):
        for _ in range(15):
            cache.store(KEY, data, ["graph"])

    def read():
        for _ in range(60):
            found = cache.load(KEY)
            if found is not None and found != found[:1] * 200_000:
                wrong.append(set(found))

    threads = [threading.Thread(target=write, args=(data,)) for data in executables]
    threads += [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cache.load(KEY) in executables
    assert list(cache.directory().rglob("*.tmp")) == []


def test_processes_that_write_one_key(folder):
    script = (
        "import sys; from torch_max_backend import cache\n"
        "for _ in range(40):\n"
        "    cache.store(sys.argv[1], sys.argv[2].encode() * 50_000, [])\n"
        "    found = cache.load(sys.argv[1])\n"
        "    assert found is not None and len(set(found)) == 1, 'torn'\n"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", script, KEY, letter], cwd=ROOT) for letter in "xyz"
    ]
    assert [child.wait() for child in children] == [0, 0, 0]
    assert set(cache.load(KEY)) <= set(b"xyz")
    assert len(stored(folder)) == 1, "no temporary files"
