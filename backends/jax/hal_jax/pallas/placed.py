"""The whole kernels of this backend on a chip, with Pallas in the heavy places. `Kernel.code` names these functions."""

from __future__ import annotations

from functools import partial

from hal_jax import attention, compression, experts, matmul, mhc, selection
from hal_jax.exchange import on
from hal_jax.pallas import attend as softmaxes
from hal_jax.pallas import experts as products
from hal_jax.pallas import scores as indexer

PIECES = {
    "tpu": (softmaxes.softmax, indexer.scores, products.one_expert),
    "gpu": (softmaxes.on_gpu, indexer.on_gpu, products.on_gpu),
}


def __getattr__(name: str) -> object:
    """`tpu_attend` is `attend` on a TPU, and so on for every contract."""
    platform, _, contract = name.partition("_")
    if platform not in PIECES:
        raise AttributeError(name)
    softmax, scores, expert = PIECES[platform]
    heavy = {
        "attend": partial(attention.run, softmax=softmax),
        "select": partial(selection.run_select, scores=scores),
        "index_scores": partial(selection.run_index_scores, scores=scores),
        "experts": partial(experts.run_experts, expert=expert),
    }
    plain = (module for module in (compression, experts, matmul, mhc) if contract in module.__all__)
    return on(platform, heavy[contract] if contract in heavy else getattr(next(plain), contract))
