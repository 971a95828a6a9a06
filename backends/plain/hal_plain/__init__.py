"""Every contract in plain torch, on whatever device its tensors are: what serves where a vendor has no operator.

No tensor leaves the device and no value is read, but for the counts that an exchange between processes needs. No loop
runs over tokens; sizes come from the batch's host numbers and from shapes. Sums are float32.
"""
