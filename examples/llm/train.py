"""Pre-train a small Llama-style model on the source of Python's own library, then fine-tune it with LoRA.

Everything is in this file: the text (bytes of the standard library, which every machine has), the model, the module
that trains it, and what changes with the strategy, which is one argument of the Trainer.

    python examples/llm/train.py                                     one device
    python examples/llm/train.py --devices 2 --strategy ddp          a copy of the model on each of two
    python examples/llm/train.py --devices 2 --strategy fsdp         a share of it on each (FSDP2)
    python examples/llm/train.py --devices 4 --strategy 2d           2 x 2: layers divided by tensor parallelism, too
    python examples/llm/train.py --lora llm_output/last.ckpt         fine-tune what the first command trained

On two CPU cores the first takes a few minutes; `--help` lists the sizes, precision, compilation and
checkpointing of activations. On GPUs begin with `--dim 1024 --layers 16 --heads 16 --kv-heads 8 --context 2048
--precision bf16-mixed --compile`.
"""

from __future__ import annotations

import argparse
import math
import sysconfig
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fulmen import LightningDataModule, LightningModule, Trainer, seed_everything
from fulmen.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, ThroughputMonitor
from fulmen.loggers import CSVLogger
from fulmen.strategies import FSDPStrategy, ModelParallelStrategy

VOCABULARY = 256  # bytes: no tokenizer to download, any text works
FINE_TUNED_ON = "asyncio"  # kept out of pre-training


# ---- the text
class Windows(Dataset):
    """Pieces of `context` bytes, each with the bytes that follow."""

    def __init__(self, text: bytes, context: int) -> None:
        self.text = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        self.context = context

    def __len__(self) -> int:
        return (len(self.text) - 1) // self.context

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        piece = self.text[index * self.context : (index + 1) * self.context + 1].long()
        return piece[:-1], piece[1:]


class PythonSource(LightningDataModule):
    """The source of the standard library: every tenth file is for validation."""

    def __init__(self, context: int, batch_size: int, package: str | None = None) -> None:
        super().__init__()
        self.context, self.batch_size, self.package = context, batch_size, package

    def setup(self, stage: str) -> None:
        library = Path(sysconfig.get_paths()["stdlib"])
        files = [
            file
            for file in sorted(library.rglob("*.py"))
            if not {"site-packages", "test", "tests", "idlelib"} & set(file.parts)
            and (FINE_TUNED_ON in file.parts) == (self.package == FINE_TUNED_ON)
        ]
        texts = [file.read_bytes() for file in files]
        self.val = Windows(b"\n".join(texts[::10])[: 64 * self.context + 1], self.context)
        self.train = Windows(b"\n".join(text for i, text in enumerate(texts) if i % 10), self.context)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.batch_size, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, self.batch_size)


# ---- the model: Llama (https://arxiv.org/abs/2302.13971) with grouped queries (https://arxiv.org/abs/2305.13245)
def rotate(x: Tensor) -> Tensor:
    """Turn pairs of features by angles that grow with the position (https://arxiv.org/abs/2104.09864)."""
    length, half = x.size(-2), x.size(-1) // 2
    speeds = 10_000 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = torch.arange(length, device=x.device, dtype=torch.float32)[:, None] * speeds
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.head_dim = dim // heads
        self.wq = nn.Linear(dim, heads * self.head_dim, bias=False)
        self.wk = nn.Linear(dim, kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(dim, kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(heads * self.head_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (  # -1 heads: with tensor parallelism a rank has some of them
            project(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for project in (self.wq, self.wk, self.wv)
        )
        mixed = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True, enable_gqa=True)
        return self.wo(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w1, self.w3 = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, kv_heads: int, hidden: int) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.RMSNorm(dim), Attention(dim, heads, kv_heads)
        self.feed_forward_norm, self.feed_forward = nn.RMSNorm(dim), FeedForward(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.feed_forward_norm(x))


class Llama(nn.Module):
    def __init__(self, dim: int, layers: int, heads: int, kv_heads: int, checkpointing: bool = False) -> None:
        super().__init__()
        hidden = 64 * math.ceil(8 * dim / 3 / 64)
        self.embedding = nn.Embedding(VOCABULARY, dim)
        self.layers = nn.ModuleList(Block(dim, heads, kv_heads, hidden) for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(dim), nn.Linear(dim, VOCABULARY, bias=False)
        self.checkpointing = checkpointing

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            # with checkpointing, activations are computed again in backward rather than kept
            x = checkpoint(layer, x, use_reentrant=False) if self.checkpointing and self.training else layer(x)
        return self.head(self.norm(x))


# how tensor parallelism divides the layers; patterns of names of modules
TENSOR_PARALLEL = {
    "model.layers.*.attention.wq": "colwise",
    "model.layers.*.attention.wk": "colwise",
    "model.layers.*.attention.wv": "colwise",
    "model.layers.*.attention.wo": "rowwise",
    "model.layers.*.feed_forward.w1": "colwise",
    "model.layers.*.feed_forward.w3": "colwise",
    "model.layers.*.feed_forward.w2": "rowwise",
}


# ---- how it is trained
class LanguageModel(LightningModule):
    def __init__(
        self,
        dim: int = 128,
        layers: int = 4,
        heads: int = 4,
        kv_heads: int = 2,
        context: int = 256,
        batch_size: int = 16,
        lr: float = 3e-3,
        steps: int = 400,
        checkpointing: bool = False,
        compiled: bool = False,
        sampled: int = 200,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = Llama(dim, layers, heads, kv_heads, checkpointing)
        if compiled:
            for layer in self.model.layers:  # block by block: compiled once, as all are alike
                layer.compile()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.model(tokens)

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        tokens, following = batch
        return F.cross_entropy(self(tokens).flatten(0, 1).float(), following.flatten())

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch), prog_bar=True)

    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Go on with prompts, a byte at a time, drawn from the model's distribution."""
        (tokens,) = batch
        draws = torch.Generator().manual_seed(batch_idx)
        for _ in range(self.hparams.sampled):
            logits = self(tokens[:, -self.hparams.context :])[:, -1].float().cpu()
            drawn = torch.multinomial((logits / 0.6).softmax(-1), 1, generator=draws)
            tokens = torch.cat([tokens, drawn.to(tokens.device)], dim=1)
        return tokens

    def configure_optimizers(self) -> dict:
        optimizer = AdamW([p for p in self.parameters() if p.requires_grad], self.hparams.lr, weight_decay=0.1)
        warmup = max(self.hparams.steps // 20, 1)

        def share(step: int) -> float:
            progress = min(step / self.hparams.steps, 1)
            return min((step + 1) / warmup, 0.1 + 0.45 * (1 + math.cos(math.pi * progress)))

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, share), "interval": "step"}}

    @property
    def flops_per_batch(self) -> int:
        """Of a rank: 2 a weight and token, and attention; backward costs twice forward (PaLM, appendix B)."""
        h = self.hparams
        weights = sum(p.numel() for name, p in self.named_parameters() if "embedding" not in name)
        forward = 2 * weights + 4 * h.layers * h.dim * h.context
        return (3 if self.training else 1) * forward * h.batch_size * h.context


# ---- LoRA (https://arxiv.org/abs/2106.09685)
class LoRA(nn.Module):
    """A frozen linear layer, plus a product of two thin matrices that is trained."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.linear, self.scale = linear.requires_grad_(False), alpha / rank
        self.down = nn.Linear(linear.in_features, rank, bias=False)
        self.up = nn.Linear(rank, linear.out_features, bias=False)
        nn.init.zeros_(self.up.weight)  # begins as the pre-trained layer

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.scale * self.up(self.down(x))


def add_lora(model: nn.Module, rank: int = 8, alpha: float = 16) -> None:
    """Freeze a model, and put adapters around the projections of its attention."""
    model.requires_grad_(False)
    for attention in [module for module in model.modules() if isinstance(module, Attention)]:
        for name in ("wq", "wk", "wv", "wo"):
            setattr(attention, name, LoRA(getattr(attention, name), rank, alpha))


# ---- what the terminal shows
class Sheet(Callback):
    """A line per validation: losses, tokens in a second, share of the machine's peak."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or trainer.sanity_checking or trainer.state.fn != "fit":
            return
        fields = {
            "train_loss": "train {:.3f}",
            "train/items_per_sec": "{:,.0f} bytes/s",
            "train/device/items_per_sec": "{:,.0f} bytes/s a device",
            "train/device/mfu": "MFU {:.1%}",
        }
        history = trainer.history
        loss = float(trainer.callback_metrics["val_loss"])
        parts = [text.format(history[name][-1][1]) for name, text in fields.items() if name in history]
        print(f"step {trainer.global_step:5d}   val {loss:.3f}", *parts, sep="   ")


def measured_peak(dtype: torch.dtype) -> float:
    """Operations a second of a large product on this CPU, with the threads of this process: what MFU is a share of."""
    a = torch.randn(1024, 1024).to(dtype)
    best = math.inf
    for _ in range(60):  # about two seconds, as other programs may slow some of them down
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    return 2 * 1024**3 / best


def strategy_of(options: argparse.Namespace) -> str | FSDPStrategy | ModelParallelStrategy:
    """The only place that knows how many devices there are."""
    if options.strategy == "fsdp":
        return FSDPStrategy(auto_wrap_policy={Block}, state_dict_type="sharded" if options.sharded else "full")
    if options.strategy == "2d":
        return ModelParallelStrategy(
            data_parallel_size=options.devices // options.tensor_parallel,
            tensor_parallel_size=options.tensor_parallel,
            parallelize=TENSOR_PARALLEL,
            save_distributed_checkpoint=options.sharded,
        )
    return options.strategy


def main(arguments: list[str] | None = None) -> Trainer:
    options = parse(arguments)
    seed_everything(1)
    data = PythonSource(options.context, options.batch_size, FINE_TUNED_ON if options.lora else None)
    sizes = {name: getattr(options, name) for name in ("dim", "layers", "heads", "kv_heads", "context")}
    training = {"batch_size": options.batch_size, "steps": options.steps, "lr": options.lr,
                "checkpointing": options.checkpointing, "compiled": options.compile,
                "sampled": options.sampled}  # fmt: skip
    if options.lora:
        model = LanguageModel.load_from_checkpoint(options.lora, map_location="cpu", **training)
        add_lora(model.model)
    else:
        model = LanguageModel(**sizes, **training)

    is_cpu = options.accelerator == "cpu" or not torch.cuda.is_available()
    peak = {"available_flops": measured_peak(torch.bfloat16 if "bf16" in options.precision else torch.float32)}
    speed = ThroughputMonitor(lambda batch: len(batch[0]), lambda batch: batch[0].numel(), window_size=20,
                              **(peak if is_cpu else {}))  # fmt: skip
    trainer = Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=strategy_of(options),
        precision=options.precision,
        max_steps=options.steps,
        accumulate_grad_batches=options.accumulate,
        gradient_clip_val=1.0,
        val_check_interval=max(options.steps // 8, 1) * options.accumulate,
        check_val_every_n_epoch=None,
        log_every_n_steps=10,
        logger=CSVLogger(options.out, name=""),
        default_root_dir=options.out,
        callbacks=[
            ModelCheckpoint(options.out, filename="lora" if options.lora else "last", save_top_k=1, monitor=None,
                            every_n_train_steps=max(options.steps // 4, 1), enable_version_counter=False),
            LearningRateMonitor(), speed, Sheet(),
        ],
        enable_progress_bar=options.bar,
    )  # fmt: skip
    if options.lora:
        before = trainer.validate(model, data, verbose=False)[0]["val_loss"]
    trainer.fit(model, data, ckpt_path=options.resume)
    after = trainer.validate(model, data, verbose=False)[0]["val_loss"]
    samples = trainer.predict(model, prompts())
    if trainer.is_global_zero:
        was = f"before {before:.3f}, " if options.lora else ""
        print(f"\nvalidation: {was}{after:.3f} nats a byte = {after / math.log(2):.2f} bits; files in {options.out}")
        for sample in torch.cat(samples).tolist():
            print("-" * 80, bytes(sample).decode(errors="replace").strip(), sep="\n")
    return trainer


def prompts() -> DataLoader:
    texts = [b"def read(self, path):\n", b"class Connection:\n", b"import os\nimport sys\n", b"for name in names:\n"]
    longest = max(map(len, texts))
    return DataLoader(TensorDataset(torch.tensor([list(text.rjust(longest, b"\n")) for text in texts])), batch_size=2)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--strategy", default="auto", choices=("auto", "ddp", "fsdp", "2d"), help="how devices share the work")
    add("--accelerator", default="auto", help="cpu, gpu, ... (default: auto)")
    add("--devices", type=int, default=1, help="devices of each machine")
    add("--num-nodes", type=int, default=1, help="machines")
    add("--tensor-parallel", type=int, default=2, help="for 2d: ranks that share a layer")
    add("--sharded", action="store_true", help="save a folder to which each rank writes its share")
    add("--precision", default="32-true", help="32-true, bf16-mixed, bf16-true")
    add("--compile", action="store_true", help="compile the blocks")
    add("--checkpointing", action="store_true", help="compute activations twice rather than keep them")
    add("--accumulate", type=int, default=1, help="batches an optimizer step")
    for name, default in (("steps", 400), ("batch-size", 16), ("context", 256), ("dim", 128), ("layers", 4),
                          ("heads", 4), ("kv-heads", 2), ("sampled", 200)):  # fmt: skip
        add(f"--{name}", type=int, default=default)
    add("--lr", type=float, default=3e-3)
    add("--lora", metavar="CHECKPOINT", help=f"fine-tune this model on the package {FINE_TUNED_ON}")
    add("--resume", metavar="CHECKPOINT", help="go on from here")
    add("--out", default="llm_output", help="folder for logs and checkpoints")
    add("--bar", action="store_true", help="show a progress bar")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
