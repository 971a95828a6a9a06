"""Every contract in plain torch, on whatever device its tensors are: what serves where a vendor has no operator.

No tensor leaves the device, and no loop runs over tokens; sizes come from the batch's host numbers. Sums are float32.
"""
