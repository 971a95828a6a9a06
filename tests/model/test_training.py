"""The model is differentiable through the references: gradients equal transformers', and training learns."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from hal.models.deepseek_v4 import DeepseekV4
from hal.models.deepseek_v4.names import official_name
from hal.models.deepseek_v4.writer import official_weights

from . import conftest as lab

CONFIG = lab.tiny(index_topk=3)
TEXT = [
    torch.randint(0, CONFIG.vocab_size, (length,), generator=torch.Generator().manual_seed(length))
    for length in (9, 50)
]


def gradients(model: DeepseekV4) -> dict[str, torch.Tensor]:
    """Gradients under official names; experts are cut from their stacks."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.data = parameter.grad
        else:
            parameter.data = torch.zeros_like(parameter)
    return {name: weight.detach() for name, weight in official_weights(model) if isinstance(weight, torch.Tensor)}


def test_gradients_equal_transformers() -> None:
    tensors = lab.random_tensors(CONFIG, 4)
    model = DeepseekV4.from_tensors(CONFIG, tensors, backend="reference").requires_grad_(True)
    oracle = lab.transformers_model(CONFIG, tensors)
    ours = sum(
        F.cross_entropy(logits[:-1], text[1:], reduction="sum")
        for logits, text in zip(model.logits([text.tolist() for text in TEXT]), TEXT, strict=True)
    )
    theirs = sum(F.cross_entropy(oracle(text[None]).logits[0, :-1], text[1:], reduction="sum") for text in TEXT)
    assert isinstance(ours, torch.Tensor)
    assert isinstance(theirs, torch.Tensor)
    ours.backward()
    theirs.backward()
    ours_by_name = gradients(model)
    compared = 0
    for name, parameter in oracle.named_parameters():
        official = official_name(name)
        assert official is not None
        if official.endswith((".gate_up_proj", ".down_proj")):
            prefix, stack = official.rsplit(".", 1)
            halves = ("w1", "w3") if stack == "gate_up_proj" else ("w2",)
            experts = range(CONFIG.n_routed_experts)
            got = torch.stack([torch.cat([ours_by_name[f"{prefix}.{e}.{h}.weight"] for h in halves]) for e in experts])
        else:
            got = ours_by_name[official]
        right = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(
            got, right, rtol=1e-3, atol=2e-4 * (1 + right.abs().max().item()), msg=lambda m, n=name: n + m
        )
        compared += bool(right.abs().max() > 0)
    assert compared > 60, compared


def test_draft_block_gets_gradients() -> None:
    model = DeepseekV4.from_tensors(CONFIG, lab.random_tensors(CONFIG, 4), backend="reference").requires_grad_(True)
    main, drafts = model.logits_with_drafts([text.tolist() for text in TEXT])
    assert [len(rows) for rows in drafts] == [len(rows) - 1 for rows in main]
    F.cross_entropy(torch.cat([rows[:-1] for rows in drafts]), torch.cat([text[2:] for text in TEXT])).backward()
    for name, parameter in model.mtp.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert model.mtp[0].e_proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize("seed", [0])
def test_random_model_learns_a_sentence(seed: int) -> None:
    config = lab.tiny(hidden_size=32, num_attention_heads=2, n_routed_experts=4)
    model = DeepseekV4.random(config, seed, backend="reference").requires_grad_(True)
    text = TEXT[1] % 7
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        loss = F.cross_entropy(model.logits([text.tolist()])[0][:-1], text[1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(torch.tensor(float(config.vocab_size)).log().item(), abs=0.2)
    assert losses[-1] < 0.6 * losses[0], losses


def test_random_is_a_function_of_its_seed() -> None:
    first, again, other = (DeepseekV4.random(CONFIG, seed, backend="reference") for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.embed, other.embed)
