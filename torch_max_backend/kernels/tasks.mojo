"""Work that the workers of a parallel region take as they get to it.

A worker goes on where it was in the regions before: each has a share of the tasks, in order, so that
the rows that it wrote are read by it again. Between cores that do not share a cache numbers take
several times as long to pass.
"""

from std.atomic import Atomic
from std.memory import Pointer
from std.memory.alloc import unsafe_alloc


struct Tasks(Copyable, ImplicitlyCopyable, Movable):
    """``count`` tasks of ``parts`` parts each. What a task needs is prepared by each worker that
    has a part in it, so that workers begin tasks while there are any, their own first; then they
    take parts of what others have begun, and all end at nearly the same time."""

    var count: Int
    var parts: Int
    var workers: Int
    var taken: Pointer[Int64, MutUntrackedOrigin]
    """Of the tasks of each worker, then of the parts of each task."""

    def __init__(out self, count: Int, parts: Int, workers: Int):
        self.count = count
        self.parts = parts
        self.workers = workers
        self.taken = unsafe_alloc[Int64](workers + count)
        for i in range(workers + count):
            self.taken[unsafe_offset=i] = 0

    def free(self):
        self.taken.unsafe_free()

    def first_of(self, worker: Int) -> Int:
        """The first task of a worker; its last is before the first of the next worker."""
        return worker * self.count // self.workers


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

    def __init__(out self, tasks: Tasks, worker: Int):
        self.tasks = tasks
        self.worker = worker
        self.task = 0
        self.part = 0
        self.begun = 0
        self.helped = 0

    def next_task(mut self) -> Bool:
        """Goes on to a part of another task, if there is one."""
        var workers = self.tasks.workers
        while self.begun < workers:
            var owner = (self.worker + self.begun) % workers
            var taken = self.tasks.taken.unsafe_offset(owner)
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
        return False

    def next_part(mut self) -> Bool:
        """Goes on to another part of this task, if there is one."""
        var taken = self.tasks.taken.unsafe_offset(self.tasks.workers + self.task)
        self.part = Int(Atomic[Int64].fetch_add(taken, 1))
        return self.part < self.tasks.parts
