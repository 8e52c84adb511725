"""Set up before any test is imported: the repo on the path, and one torch thread per worker."""

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # several workers with many threads each fight over the cores
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
