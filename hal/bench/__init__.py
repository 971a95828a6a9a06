"""Measurements against peers in one process: interleaved runs on the same weights, so that a busy machine slows both.

`prefill` and `decode` compare with transformers' `DeepseekV4ForCausalLM`, `overhead` a bound call with the bare
function and with `torch.library.custom_op`.
"""
