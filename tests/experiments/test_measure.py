import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adjoint_meta.experiments.measure import peak_memory_bytes


def test_the_peak_is_that_of_the_kernel():
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("no /proc here to compare with")
    found = peak_memory_bytes(torch.device("cpu"))
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    # the kernel batches its counters, so the two may differ by some pages a thread
    assert found == pytest.approx(1024 * int(line.split()[1]), rel=0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_it_is_the_allocators():
    device = torch.device("cuda")
    torch.cuda.reset_peak_memory_stats()
    block = torch.empty(2**24, dtype=torch.uint8, device=device)
    del block
    assert 2**24 <= peak_memory_bytes(device) == torch.cuda.max_memory_allocated()


def test_the_peak_covers_what_was_freed(root):
    """A block 200 MiB above the peak so far, written and freed again."""
    if not Path("/proc/self").exists():
        pytest.skip("no /proc here to tell what is in use")
    program = (
        "import resource, torch\n"
        "from adjoint_meta.experiments.measure import peak_memory_bytes\n"
        "cpu = torch.device('cpu')\n"
        "before = peak_memory_bytes(cpu)\n"
        "in_use = int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize()\n"
        "block = torch.ones(before - in_use + 200 * 2**20, dtype=torch.uint8)\n"
        "del block\n"
        "print(peak_memory_bytes(cpu) - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert 150 * 2**20 < int(done.stdout) < 260 * 2**20
