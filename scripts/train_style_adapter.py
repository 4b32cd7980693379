"""Train the style adapter that ships with Palate: a LoRA of all-MiniLM-L6-v2 that sees style better.

The bundled answers say which style poles they were written in. The adapter (Hu et al. 2021, arXiv 2106.09685) is
trained to tell these from the layers that the sentence encoder reads, and to tell whole answers from ones cut short
and answers from ones to another prompt; cuts and mix-ups are made as it trains. Prompts p4xx and p5xx, which the
benchmarks measure on, are left out.

    python scripts/train_style_adapter.py OUTPUT [--encoder FOLDER] [--check]

writes OUTPUT/adapter.safetensors: for each tuned matrix W of the model `W.a` (r, in) and `W.b` (out, r), in half
precision, W ← W + b @ a. With --check it trains on two thirds of the prompts first and prints, epoch by epoch, the
R² of a ridge regression of the styles within the other prompts. A minute on a GPU, about an hour on two cores.
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from palate.data import POLES, Answer, load_answers, load_style_answers
from palate.encoders.adapter import BASE
from palate.encoders.models import find_model, load_model, load_tokenizer, read_config, windows_of

RANK, EPOCHS, BATCH, RATE, HEAD_RATE = 32, 30, 64, 1e-3, 2e-3
LAYERS = (1, 2, 3, 4)  # those that the sentence encoder reads
TUNED = r"encoder\.layer\.\d+\.(attention\.self\.(query|key|value)|(attention\.output|intermediate|output)\.dense)"
LEFT_OUT = ("p4", "p5")
ATTRIBUTES = list(dict.fromkeys(attribute for attribute, _ in POLES.values()))


class Reader(nn.Module):
    """The model with its adapter, and heads that are thrown away."""

    def __init__(self, folder: Path) -> None:
        from peft import LoraConfig, get_peft_model

        super().__init__()
        model = load_model(folder, read_config(folder))
        self.tokenizer = windows_of(load_tokenizer(folder), model)
        self.tokenizer.enable_padding()
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.1, target_modules=TUNED)
        self.model = get_peft_model(model, config)
        width = len(LAYERS) * model.config.hidden_size
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.style = nn.ModuleList([nn.Linear(width, len(ATTRIBUTES)), nn.Linear(width, len(ATTRIBUTES))])
        self.cut, self.relation, self.dropout = nn.Linear(width, 1), nn.Linear(1, 1), nn.Dropout(0.2)
        nn.init.constant_(self.relation.weight, 5.0)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.cut.weight.device

    def read(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Averages over tokens and last tokens of the read layers, (n, L·H) each; averages of the last layer (n, H)."""
        tokens = self.tokenizer.encode_batch(list(texts))
        ids, mask = (
            torch.tensor([getattr(t, name) for t in tokens], device=self.device) for name in ("ids", "attention_mask")
        )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            states = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        count = mask.sum(1)
        mean = [(state.float() * mask[..., None]).sum(1) / count[:, None] for state in states]
        last = [state.float()[torch.arange(len(texts)), (count - 2).clamp(min=0)] for state in states]
        return *(torch.cat([pooled[k] for k in LAYERS], 1) for pooled in (mean, last)), mean[-1]

    def loss(self, answers: Sequence[Answer], prompts: Sequence[str], rng: random.Random) -> Tensor:
        """Of a batch, some of it cut short and some of it beside another prompt."""
        cut = [rng.random() < 0.25 for _ in answers]
        mixed = [rng.random() < 0.3 for _ in answers]
        texts = [shortened(a.text, rng) if c else a.text for a, c in zip(answers, cut, strict=True)]
        asked = [rng.choice(prompts) if m else a.prompt for a, m in zip(answers, mixed, strict=True)]
        n = len(answers)
        mean, last, whole = self.read([*texts, *asked])
        mean, last = (self.dropout(norm(x[:n])) for norm, x in zip(self.norms, (mean, last), strict=True))
        shown = self.style[0](mean) + 0.5 * self.style[1](last)
        near = nn.functional.cosine_similarity(whole[:n], whole[n:])[:, None]
        binary = nn.functional.binary_cross_entropy_with_logits
        return (
            3 * nn.functional.mse_loss(shown, styles(answers).to(shown))
            + 0.5 * binary(self.cut(last)[:, 0], torch.tensor(cut).to(shown))
            + 0.5 * binary(self.relation(near)[:, 0], 1 - torch.tensor(mixed).to(shown))
        )

    def adapter(self) -> dict[str, Tensor]:
        """`W.a` and `W.b` of each tuned matrix."""
        found = {}
        for name, module in self.model.base_model.model.named_modules():
            if hasattr(module, "lora_A"):
                scale = module.scaling["default"]
                found[f"{name}.weight.a"] = module.lora_A["default"].weight.detach()
                found[f"{name}.weight.b"] = scale * module.lora_B["default"].weight.detach()
        return {name: tensor.half().cpu().contiguous() for name, tensor in found.items()}


def shortened(text: str, rng: random.Random) -> str:
    """A text broken off somewhere, without its last mark."""
    words = text.split()
    return " ".join(words[: max(2, int(len(words) * rng.uniform(0.2, 0.9)))]).rstrip(".!?,;:")


def styles(answers: Sequence[Answer]) -> Tensor:
    """(n, 7) 1, −1, or 0 where an answer shows neither pole."""
    return torch.tensor([[float(answer.attributes.get(name, 0)) for name in ATTRIBUTES] for answer in answers])


def train(folder: Path, answers: Sequence[Answer], unseen: Sequence[Answer] = (), seed: int = 0) -> Reader:
    """Tune on `answers`; with unseen ones, print how well these are read every five epochs."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    reader = Reader(folder).to("cuda" if torch.cuda.is_available() else "cpu")
    order, prompts = list(answers), sorted({answer.prompt for answer in answers})
    tuned = [p for p in reader.model.parameters() if p.requires_grad]
    heads = [p for name, p in reader.named_parameters() if not name.startswith("model.")]
    optimizer = torch.optim.AdamW([{"params": tuned, "lr": RATE}, {"params": heads}], HEAD_RATE, weight_decay=0.01)
    steps = len(order) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [RATE, HEAD_RATE], EPOCHS * steps, pct_start=0.1)
    for epoch in range(1, EPOCHS + 1):
        reader.train()
        rng.shuffle(order)
        for step in range(steps):
            loss = reader.loss(order[step * BATCH : (step + 1) * BATCH], prompts, rng)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(tuned, 1.0)
            optimizer.step()
            schedule.step()
        note = f", R² {r_squared(reader, answers, unseen):.3f}" if unseen and epoch % 5 == 0 else ""
        print(f"epoch {epoch}: loss {float(loss.detach()):.3f}{note}", flush=True)
    return reader


@torch.no_grad()
def r_squared(reader: Reader, seen: Sequence[Answer], unseen: Sequence[Answer]) -> float:
    """Of the seven styles within unseen prompts, by a ridge regression on the seen ones."""
    reader.eval()

    def features(answers: Sequence[Answer]) -> np.ndarray:
        chunks = [reader.read([a.text for a in answers[i : i + 256]]) for i in range(0, len(answers), 256)]
        return np.concatenate([torch.cat([mean, 0.5 * last], 1).cpu().numpy() for mean, last, _ in chunks])

    x, y = features(seen).astype(np.float64), styles(seen).numpy().astype(np.float64)
    centre, spread = x.mean(0), x.std(0) * np.sqrt(x.shape[1]) + 1e-9
    z = (x - centre) / spread
    weights = z.T @ np.linalg.solve(z @ z.T + np.eye(len(z)), y - y.mean(0))
    number = np.unique([answer.prompt_id for answer in unseen], return_inverse=True)[1]

    def within(values: np.ndarray) -> np.ndarray:
        means = np.stack([np.bincount(number, column) for column in values.T], 1) / np.bincount(number)[:, None]
        return values - means[number]

    told = within((features(unseen) - centre) / spread @ weights)
    true = within(styles(unseen).numpy().astype(np.float64))
    return float(np.mean(1 - ((true - told) ** 2).sum(0) / (true**2).sum(0)))


def main() -> None:
    """Read the arguments, train, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("output", type=Path, help="folder for adapter.safetensors")
    parser.add_argument("--encoder", default=BASE, help="the model, or its folder")
    parser.add_argument("--check", action="store_true", help="train on two thirds of the prompts first")
    options = parser.parse_args()
    answers = [a for a in (*load_answers(), *load_style_answers()) if not a.spoilt]
    answers = [a for a in answers if not a.prompt_id.startswith(LEFT_OUT)]
    folder = find_model(options.encoder)
    if options.check:
        third = set(sorted({answer.prompt_id for answer in answers})[::3])
        seen, unseen = ([a for a in answers if (a.prompt_id in third) is out] for out in (False, True))
        train(folder, seen, unseen)
    adapter = train(folder, answers).adapter()
    options.output.mkdir(parents=True, exist_ok=True)
    save_file(adapter, options.output / "adapter.safetensors", metadata={"prompts": str(len(answers) // 12)})


if __name__ == "__main__":
    main()
