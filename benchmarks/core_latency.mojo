"""How long two cores take to answer each other through memory: a counter that they raise by turns.

Prints nanoseconds from one core to the other and back, the median of ROUNDS.
"""

from std.atomic import Atomic
from std.memory.alloc import unsafe_alloc
from std.time import perf_counter_ns
from max.algorithm import sync_parallelize

comptime TRIPS = 20000
comptime ROUNDS = 21


def main():
    var counter = unsafe_alloc[Int64](1)
    var times = List[Float64]()
    for _ in range(ROUNDS):
        counter[] = 0

        def answer(worker: Int) {counter}:
            for trip in range(TRIPS):
                while Atomic[Int64].load(counter) != Int64(2 * trip + worker):
                    pass
                _ = Atomic[Int64].fetch_add(counter, 1)

        var start = perf_counter_ns()
        sync_parallelize(answer, 2)
        times.append(Float64(perf_counter_ns() - start) / TRIPS)
    sort(times)
    print(times[ROUNDS // 2])
    counter.unsafe_free()
