"""Planted faults: honest and faulty kernels of every operator family, to calibrate the judge of `hal.numerics`."""
