"""One thread for each process that runs tests beside others: teams of spinning threads starve each other."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")
