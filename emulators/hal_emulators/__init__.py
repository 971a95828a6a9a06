"""Emulators: chips that are not here.

Each module of the entry-point group `hal.emulators` makes one backend runnable on a host without its chip. Only
`HAL_BACKEND=name@emulated` loads one; neither `hal` nor a backend ever imports this distribution, and nothing that ran
here is called verified.
"""
