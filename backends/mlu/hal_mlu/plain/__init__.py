"""Every contract in plain torch on the device: what serves where torch_mlu_ops has no operator, or is not installed.

No tensor leaves the device, and no loop runs over tokens; sizes come from the batch's host numbers. Sums are float32.
"""
