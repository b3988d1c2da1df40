"""Bodies of lowerings that are too long for a row of the table.

What is known while lowering is computed in Python, not by MAX (see scalars.py): MAX would compile
a kernel for it. tests/test_compile_cost.py notices.
"""
