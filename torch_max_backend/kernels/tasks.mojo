"""Work that the workers of a parallel region take as they get to it.

A worker goes on where it was in the regions before: each has a share of the tasks, in order, so that
the rows that it wrote are read by it again. Between cores that do not share a cache numbers take
several times as long to pass.

A region may have several lots of tasks of which each needs all results of the one before: a worker
waits for what others are at, never for one that has begun nothing.
"""

from std.atomic import Atomic
from std.ffi import external_call
from std.memory import Pointer
from std.memory.alloc import unsafe_alloc
from std.sys import size_of
from .fetching import CACHE_LINE

comptime WORKER_PARTS = 16
"""Parts for each worker that are enough for all to end at nearly the same time."""
comptime Counter = Pointer[Int64, MutUntrackedOrigin]
comptime LINE = CACHE_LINE // size_of[Int64]()
"""Counters in a line of the cache."""
comptime LOOKS = 4096
"""How often a worker looks whether others are done before it lets them have its processor."""


struct Tasks(Copyable, ImplicitlyCopyable, Movable):
    """``count`` tasks of ``parts`` parts each. What a task needs is prepared by each worker that
    has a part in it, so that workers begin tasks while there are any, their own first; then they
    take parts of what others have begun, and all end at nearly the same time."""

    var count: Int
    var parts: Int
    var workers: Int
    var counters: Counter
    """Parts that are done, then tasks of each worker that are taken, a line of the cache each; then
    parts of each task that are taken."""

    def __init__(out self, count: Int, parts: Int, workers: Int):
        self.count = count
        self.parts = parts
        self.workers = workers
        var size = (1 + workers) * LINE + count
        self.counters = unsafe_alloc[Int64](size, alignment=CACHE_LINE)
        for i in range(size):
            self.counters[unsafe_offset=i] = 0

    def free(self):
        self.counters.unsafe_free()

    def first_of(self, worker: Int) -> Int:
        """The first task of a worker; its last is before the first of the next worker."""
        return worker * self.count // self.workers

    def done(self) -> Counter:
        return self.counters

    def taken_of(self, worker: Int) -> Counter:
        return self.counters.unsafe_offset((1 + worker) * LINE)

    def parts_taken_of(self, task: Int) -> Counter:
        return self.counters.unsafe_offset((1 + self.workers) * LINE + task)

    def wait(self):
        """Until all of them are done, for a worker that has found no more of them."""
        var looks = 0
        while Int(Atomic[Int64].load(self.done())) < self.count * self.parts:
            looks += 1
            if looks % LOOKS == 0:  # perhaps it is this processor that another worker needs
                _ = external_call["sched_yield", Int32]()


struct Turn(Movable):
    """What a worker is at: a part of a task."""

    var tasks: Tasks
    var worker: Int
    var task: Int
    var part: Int
    var begun: Int
    """Workers, from this one on, whose tasks are all begun."""
    var helped: Int
    """Tasks that this worker has gone through since to help."""
    var parts: Int
    """Parts that it has taken."""

    def __init__(out self, tasks: Tasks, worker: Int):
        self.tasks = tasks
        self.worker = worker
        self.task = 0
        self.part = 0
        self.begun = 0
        self.helped = 0
        self.parts = 0

    def next_task(mut self) -> Bool:
        """Goes on to a part of another task; if there is none, all that it took are done."""
        var workers = self.tasks.workers
        while self.begun < workers:
            var owner = (self.worker + self.begun) % workers
            var taken = self.tasks.taken_of(owner)
            self.task = self.tasks.first_of(owner) + Int(Atomic[Int64].fetch_add(taken, 1))
            if self.task >= self.tasks.first_of(owner + 1):
                self.begun += 1
            elif self.next_part():
                return True
        # What others are at are the last tasks of an owner, as many as there are workers at most.
        while self.helped < workers * workers:
            var owner = (self.worker + 1 + self.helped) % workers
            self.task = self.tasks.first_of(owner + 1) - 1 - self.helped // workers
            self.helped += 1
            if self.task >= self.tasks.first_of(owner) and self.next_part():
                return True
        _ = Atomic[Int64].fetch_add(self.tasks.done(), Int64(self.parts))
        return False

    def next_part(mut self) -> Bool:
        """Goes on to another part of this task, if there is one."""
        var taken = self.tasks.parts_taken_of(self.task)
        self.part = Int(Atomic[Int64].fetch_add(taken, 1))
        if self.part >= self.tasks.parts:
            return False
        self.parts += 1
        return True
