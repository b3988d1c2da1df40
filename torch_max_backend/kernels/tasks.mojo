"""Work that the workers of a parallel region take as they get to it."""

from std.atomic import Atomic
from std.memory import Pointer
from std.memory.alloc import unsafe_alloc


struct Tasks(Copyable, ImplicitlyCopyable, Movable):
    """``count`` tasks of ``parts`` parts each. What a task needs is prepared by each worker that
    has a part in it, so that workers begin tasks of their own while there are any; then they take
    parts of what others have begun, and all end at nearly the same time."""

    var count: Int
    var parts: Int
    var taken: Pointer[Int64, MutUntrackedOrigin]
    """Of tasks, then of the parts of each."""

    def __init__(out self, count: Int, parts: Int):
        self.count = count
        self.parts = parts
        self.taken = unsafe_alloc[Int64](count + 1)
        for i in range(count + 1):
            self.taken[unsafe_offset=i] = 0

    def free(self):
        self.taken.unsafe_free()


struct Turn(Movable):
    """What a worker is at: a part of a task."""

    var tasks: Tasks
    var task: Int
    var part: Int
    var helps: Bool
    """All tasks are begun: this worker goes through them from the last one on."""

    def __init__(out self, tasks: Tasks):
        self.tasks = tasks
        self.task = 0
        self.part = 0
        self.helps = False

    def next_task(mut self) -> Bool:
        """Goes on to a part of another task, if there is one."""
        while not self.helps:
            self.task = Int(Atomic[Int64].fetch_add(self.tasks.taken, 1))
            if self.task >= self.tasks.count:
                self.helps = True
                self.task = self.tasks.count if self.tasks.parts > 1 else 0
            elif self.next_part():
                return True
        while self.task > 0:
            self.task -= 1
            if self.next_part():
                return True
        return False

    def next_part(mut self) -> Bool:
        """Goes on to another part of this task, if there is one."""
        var taken = self.tasks.taken.unsafe_offset(1 + self.task)
        self.part = Int(Atomic[Int64].fetch_add(taken, 1))
        return self.part < self.tasks.parts
