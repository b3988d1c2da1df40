"""What the arithmetic units do at most: products summed up in registers, by all workers at once.

Prints a line per type: its name and GFLOP/s, the fastest of ROUNDS.
"""

from std.runtime import parallelism_level
from std.sys import size_of
from std.time import perf_counter_ns
from max.algorithm import sync_parallelize
from torch_max_backend_kernels.units import *

comptime STEPS = 1 << 20
comptime ROUNDS = 50
comptime SUMS = ROWS * VECTORS
"""As many as in a tile of our products, which hides how long an instruction takes."""


def main():
    _measure[DType.float32]()
    comptime if PARTS[DType.bfloat16] == 1:
        _measure[DType.bfloat16]()
    comptime if PARTS[DType.int8] == 1:
        _measure[DType.int8]()


def _measure[dtype: DType]():
    var workers = parallelism_level()
    var fastest = UInt.MAX
    for _ in range(ROUNDS):
        var start = perf_counter_ns()
        sync_parallelize(_multiply_add[dtype], workers)
        fastest = min(fastest, UInt(perf_counter_ns() - start))
    comptime NUMBERS = WIDTH[dtype] * size_of[UNIT[dtype]]() // size_of[dtype]()
    var operations = 2 * STEPS * SUMS * NUMBERS * workers
    print(dtype, Float64(operations) / Float64(fastest))


def _multiply_add[dtype: DType](worker: Int):
    var sums = Array[Sums[dtype], SUMS](fill=Sums[dtype](0))
    var a = Units[dtype](Scalar[UNIT[dtype]](0x3F803F80 + worker))  # about 1 in every type
    for _ in range(STEPS):
        comptime for i in range(SUMS):
            sums[i] = multiply_add_part[dtype](sums[i], a, a)
    var total = sums[0]
    comptime for i in range(1, SUMS):
        total += sums[i]
    if total.reduce_add() == 1:  # never; so that nothing is left out
        print(worker)
