"""Compiling in a process of its own: what it is given, what it leaves, and where it gives up."""

import dataclasses
import logging
import pickle
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch

from tests.test_warm_start import Model, Ran
from torch_max_backend import UnsupportedOpsError, background, background_process
from torch_max_backend.background import processes
from torch_max_backend.executable import CompiledGraph


class RunAtOnce:
    """A thread that has ended when it has started."""

    def __init__(self, target):
        self.start = target


@pytest.fixture(autouse=True)
def stored(monkeypatch, tmp_path):
    """The calls that an empty cache of the test's own holds; MAX compiles and runs nothing."""

    def run(self, args):
        raise Ran

    monkeypatch.setenv("TORCH_MAX_BACKEND_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(CompiledGraph, "__call__", run)
    monkeypatch.setattr(background_process, "compile_waiting", lambda: None)
    monkeypatch.setattr(background, "Thread", RunAtOnce)
    yield lambda: {path: path.read_bytes() for path in tmp_path.glob("??/*.call")}
    torch._dynamo.reset()
    torch.set_autocast_enabled("cpu", False)  # compile_request leaves its process as asked for


@pytest.fixture
def requests(monkeypatch):
    """The requests, of which none is met."""
    received = []

    def refuse(request):
        received.append(pickle.loads(pickle.dumps(request)))
        raise RuntimeError("no processes today")

    monkeypatch.setattr(processes, "compile", refuse)
    return received


def compiled(function, **options):
    torch._dynamo.reset()
    return torch.compile(function, backend="max", fullgraph=True, dynamic=False, options=options)


def in_background(function):
    return compiled(function, compile="background")


MODES = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("mode", MODES)
def test_the_other_process_leaves_what_a_trace_here_would(mode, stored, requests):
    model, x = Model().eval().requires_grad_(False), torch.randn(3, 5, 16)
    with MODES[mode](), pytest.raises(Ran):
        compiled(model)(x)
    here = stored()
    (path,) = here
    path.unlink()
    with MODES[mode]():
        in_background(model)(x)
    assert not stored()
    background_process.trace_request(requests[0])
    assert stored() == here


def test_the_first_answer_is_eager_s_and_keeps_nothing_of_the_batch(requests):
    model, x = Model().eval(), torch.randn(3, 5, 16)
    run, alive = in_background(model), weakref.ref(x)
    with torch.no_grad():
        for got, expected in zip(run(x), model(x), strict=True):
            assert torch.equal(got, expected)
    del x
    assert alive() is None


def test_what_the_process_does_not_do_is_done_here(requests, caplog):
    run, x = in_background(torch.sin), torch.randn(3)
    with caplog.at_level(logging.INFO, "torch_max_backend"):
        assert torch.equal(run(x), torch.sin(x))
    assert "compiling here: no processes today" in caplog.text
    for _ in range(2):
        with pytest.raises(Ran):
            run(x)
    assert len(requests) == 1


def test_an_operator_without_a_lowering_is_told_at_the_next_call(requests):
    run, x = in_background(lambda x: torch.linalg.eigvalsh(x)), torch.eye(3)
    run(x)
    for _ in range(2):
        with pytest.raises(UnsupportedOpsError, match="linalg_eig"):
            run(x)


def test_a_graph_that_changes_its_arguments_is_for_the_caller_s_process(requests):
    in_background(lambda x: x.add_(1))(torch.randn(3))
    with pytest.raises(RuntimeError, match="changes its arguments or returns views"):
        background_process.trace_request(requests[0])


def test_requests_that_wait_are_compiled_as_one_program(requests, stored, monkeypatch):
    functions = [torch.sin, lambda x: torch.linalg.eigvalsh(x), torch.cos, lambda x: x.add_(1)]
    for function in functions:
        in_background(function)(torch.eye(3))
    compiles = []
    monkeypatch.setattr(
        background_process, "compile_waiting", lambda: compiles.append(len(stored()))
    )
    errors = background_process.compile_requests(requests)
    assert compiles == [2], "once, when all are traced"
    assert "linalg_eig" in errors[1] and "changes its arguments" in errors[3]
    assert errors[0] is None and errors[2] is None

    def refuse():
        raise RuntimeError("MAX refuses\none of them")

    monkeypatch.setattr(background_process, "compile_waiting", refuse)
    monkeypatch.setattr(background_process.warm_start, "knows", lambda key: key == requests[0].key)
    errors = background_process.compile_requests(requests)
    assert errors[0] is None, "the cache has it"
    assert errors[2] == "RuntimeError: MAX refuses one of them"


class Processes:
    """Processes that start and answer when they are told to."""

    def __init__(self, monkeypatch):
        self.taken, self.go, self.started = [], threading.Semaphore(0), threading.Semaphore(0)
        monkeypatch.setattr(background, "_started", self.start)
        monkeypatch.setattr(background, "_answers", self.answer)

    def start(self):
        self.started.release()
        self.go.acquire()

    def answer(self, process, taken):
        self.taken.append(sorted(waiting.request for waiting in taken))
        return ["no" if waiting.request == "b" else None for waiting in taken]


def test_a_process_takes_what_waits_when_it_has_started(monkeypatch):
    fakes, found = Processes(monkeypatch), {}
    waiting = background._Processes()

    def ask(request):
        try:
            found[request] = waiting.compile(request)
        except RuntimeError as error:
            found[request] = str(error)

    def asked(requests):
        threads = [threading.Thread(target=ask, args=(request,)) for request in requests]
        for thread in threads:
            thread.start()
        return threads

    first = asked("a")
    fakes.started.acquire()
    first += asked("bc")
    while len(waiting._waiting) < 3:
        time.sleep(0.001)
    fakes.go.release()
    for thread in first:
        thread.join()
    assert fakes.taken == [["a", "b", "c"]]
    assert found == {"a": None, "b": "no", "c": None}
    fakes.go.release()
    for thread in asked("d"):
        thread.join()
    assert fakes.taken[1:] == [["d"]]


def test_a_process_that_gives_up_says_why(requests, monkeypatch):
    in_background(torch.sin)(torch.randn(3))
    (request,) = requests
    with pytest.raises(RuntimeError, match="RuntimeError: the graph has another key"):
        background._Processes().compile(dataclasses.replace(request, key="0" * 64))
    monkeypatch.setattr(background.pickle, "dumps", lambda requests: b"nothing to read")
    with pytest.raises(RuntimeError, match="UnpicklingError"):
        background._Processes().compile(request)


PAIR = torch.randn(2, 3)
AT_ONCE = {
    "training": (torch.sin, torch.randn(3, requires_grad=True)),
    "inputs that share memory": (torch.add, PAIR[0], PAIR[:, 0][:1]),
}


@pytest.mark.parametrize("case", AT_ONCE)
def test_traced_at_once(case, requests, stored):
    function, *inputs = AT_ONCE[case]
    with pytest.raises(Ran):
        in_background(function)(*inputs)
    assert not requests


def test_the_process_has_this_one_s_modules_and_prints_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_MAX_BACKEND_PROFILE", "1")
    monkeypatch.setenv("TORCH_MAX_BACKEND_TRACE", "trace.json")
    monkeypatch.syspath_prepend(tmp_path)
    environment = background._environment()
    assert environment["PYTHONPATH"].split(":")[0] == str(tmp_path)
    assert not {"TORCH_MAX_BACKEND_PROFILE", "TORCH_MAX_BACKEND_TRACE"} & set(environment)
    assert Path(environment["TORCH_MAX_BACKEND_CACHE_DIR"]) == tmp_path
