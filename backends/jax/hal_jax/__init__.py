"""hal on XLA: every contract in jax.numpy under jit, and Pallas kernels for the heavy ones.

Each module holds one family. What XLA compiles has static shapes, so everything that grows with a batch is padded to
the next bucket (`exchange.bucket`): a growing context recompiles when it crosses a power of two and not at every token.
"""
