"""Brings the chip up before any check imports torch. Without a chip these files are not collected either."""

import os

from hal_emulators.cann import start

if "EMULATED_CHIP" in os.environ:
    start(os.environ["EMULATED_CHIP"])
