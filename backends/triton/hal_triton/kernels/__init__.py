"""The kernels themselves: what runs on the chip."""
