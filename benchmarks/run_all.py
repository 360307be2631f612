"""Prints all tables of benchmarks/README.md except the ablation's.

python benchmarks/run_all.py
"""

import subprocess
import sys
from pathlib import Path

SCRIPTS = (
    "wire.py",
    "throughput.py",
    "sharing.py",
    "memory.py",
    "load.py",
    "step_time.py",
    "overlap.py",
    "verifier.py",
    "bookkeeping.py",
    "pictures.py",
    "gradients.py",
    "training_memory.py",
    "sft_memory.py",
    "head.py",
    "rounding.py",
)

for script in SCRIPTS:
    subprocess.run([sys.executable, str(Path(__file__).parent / script)], check=True)
