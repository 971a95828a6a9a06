"""The experiment that calibrates the judge lives beside the package, in `tools`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
