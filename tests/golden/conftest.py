"""Puts the handlers and the weight recipe on the path, and how other tests start several processes."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "unit"))
