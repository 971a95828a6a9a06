"""Python kernels of aclnn operators, one module per family, written from Huawei's documentation of each operator."""

from hal_emulators.cann.kernels import exchange, gated, memory, products, quantization, routing, rows

__all__ = ["exchange", "gated", "memory", "products", "quantization", "routing", "rows"]
