import os

from hal_emulators.cann import start

TARGET = start(os.environ["EMULATED_CHIP"])
