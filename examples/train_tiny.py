"""Train a small DeepSeek-V4 on the Python language reference and write it as an official FP8 + FP4 checkpoint.

    python examples/train_tiny.py --minutes 50

The text is `pydoc_data.topics`, which every Python installation ships. The network has every kind of layer (window,
CSA, HCA), both routings and an MTP head, at the head sizes of the published models, so that the checkpoint exercises
the same kernels and cache layouts. It is trained through the differentiable references. The indexer gets no gradient, a
top-k has none: it keeps its random projection, which preserves inner products on average.
"""

from __future__ import annotations

import argparse
import math
import pydoc_data.topics
import random
import time
from pathlib import Path

import matplotlib
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F

from hal.models.deepseek_v4 import DeepseekV4, DeepseekV4Config, save_checkpoint

matplotlib.use("Agg")
from matplotlib import pyplot

CONFIG = DeepseekV4Config(
    vocab_size=512,
    hidden_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    head_dim=512,
    qk_rope_head_dim=64,
    q_lora_rank=128,
    o_groups=2,
    o_lora_rank=64,
    compress_ratios=(0, 4, 128, 4),
    index_n_heads=16,
    index_head_dim=128,
    index_topk=32,
    moe_intermediate_size=128,
    n_routed_experts=8,
    num_experts_per_tok=2,
    num_hash_layers=1,
    sliding_window=64,
    max_position_embeddings=65536,
    num_nextn_predict_layers=1,
)


def text() -> str:
    """The chapters of the language reference, one after the other."""
    topics = pydoc_data.topics.topics
    return "\n\n".join(topics[name] for name in sorted(topics))


def train_tokenizer(corpus: str) -> Tokenizer:
    """Byte-level BPE: every byte is a token, frequent pairs are merged."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG.vocab_size,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([corpus], trainer)
    return tokenizer


def loss_of(model: DeepseekV4, sequences: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropies in nats per token: of the next token, and of the token after it by the MTP head."""
    logits, drafts = model.logits_with_drafts(sequences)
    following = [torch.tensor(sequence) for sequence in sequences]
    main = F.cross_entropy(torch.cat([row[:-1] for row in logits]), torch.cat([ids[1:] for ids in following]))
    draft = F.cross_entropy(torch.cat([row[:-1] for row in drafts]), torch.cat([ids[2:] for ids in following]))
    return main, draft


def plot(losses: list[float], path: Path) -> None:
    """The loss curve, smoothed over 20 steps."""
    smooth = [sum(losses[max(0, i - 19) : i + 1]) / len(losses[max(0, i - 19) : i + 1]) for i in range(len(losses))]
    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot(losses, alpha=0.25)
    axes.plot(smooth)
    axes.set(xlabel="step", ylabel="loss, nats per token", title="Training of examples/tiny-v4")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def main() -> None:
    """Train for `--minutes`, then write the checkpoint, the tokenizer and the loss curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=50.0)
    parser.add_argument("--length", type=int, default=160, help="tokens per sequence")
    parser.add_argument("--batch", type=int, default=4, help="sequences per step")
    parser.add_argument("--rate", type=float, default=4e-3, help="highest learning rate")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "tiny-v4")
    options = parser.parse_args()

    corpus = text()
    tokenizer = train_tokenizer(corpus)
    ids = tokenizer.encode(corpus).ids
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(options.out / "tokenizer.json"))
    torch.set_num_threads(1)  # many small products: a second thread mostly waits
    torch.manual_seed(0)
    random.seed(0)
    model = DeepseekV4.random(CONFIG, seed=0, backend="reference").requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.01)
    losses: list[float] = []
    began = saved = time.perf_counter()
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("training", total=1.0)
        while (done := (time.perf_counter() - began) / (60 * options.minutes)) < 1:
            warm = min(1.0, (len(losses) + 1) / 20)
            for group in optimizer.param_groups:
                group["lr"] = options.rate * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))
            starts = [random.randrange(len(ids) - options.length) for _ in range(options.batch)]
            main_loss, draft_loss = loss_of(model, [ids[start : start + options.length] for start in starts])
            optimizer.zero_grad()
            (main_loss + 0.3 * draft_loss).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(main_loss.item())
            words = f"step {len(losses)}  loss {losses[-1]:.3f}  draft {draft_loss.item():.3f}"
            progress.update(task, completed=done, description=words)
            if time.perf_counter() - saved > 300:
                saved = time.perf_counter()
                save_checkpoint(options.out, model)
    save_checkpoint(options.out, model)
    plot(losses, options.out / "loss.png")
    print(f"{len(losses)} steps, last losses {sum(losses[-20:]) / len(losses[-20:]):.3f}; wrote {options.out}")


if __name__ == "__main__":
    main()
