"""The time slices of MAX's workers."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from torch_max_backend.time_slices import SLICE, time_slice

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has such slices")


@pytest.mark.parametrize("before", ["", "from max.driver import CPU; CPU(); time.sleep(0.2)"])
def test_those_of_workers_are_long(before: str) -> None:
    """Whenever MAX starts them. Their name is private, and Linux before 6.12 says 0 for all."""
    script = f"""if True:
        import os, time
        import torch_max_backend
        {before}
        from torch_max_backend.session import session
        from torch_max_backend.time_slices import max_workers, time_slice
        print(time_slice(os.getpid()))
        session()
        time.sleep(0.2)  # until they have their name
        print(time_slice(os.getpid()))
        print(*map(time_slice, max_workers()))
        """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    own, own_later, *workers = done.stdout.split()
    assert own == own_later and int(own) < SLICE
    assert set(workers) == {str(SLICE) if int(own) else "0"}


def test_nothing_else_changes() -> None:
    """Neither priority nor policy; a thread of another policy keeps its slice."""
    script = """if True:
        import os
        from torch_max_backend.time_slices import SLICE, set_time_slice, time_slice
        me = os.getpid()
        os.nice(3)
        for policy in os.SCHED_BATCH, os.SCHED_OTHER:
            os.sched_setscheduler(0, policy, os.sched_param(0))
            set_time_slice(me, SLICE)
            print(os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0), time_slice(me))
        """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (nice, policy, kept), (nice_2, policy_2, changed) = map(str.split, done.stdout.splitlines())
    assert (nice, nice_2) == ("3", "3")
    assert (policy, policy_2) == (str(os.SCHED_BATCH), str(os.SCHED_OTHER))
    assert int(kept) < SLICE
    assert int(changed) == (SLICE if time_slice(os.getpid()) else 0)
