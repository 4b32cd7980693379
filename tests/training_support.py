"""Small fine-tunings on a tiny random model."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from tests.tiny_models import save_causal

PROMPTS = ["Hi", "Ho", "Who are you?"]


def texts(completions: list[Any]) -> list[str]:
    return [one if isinstance(one, str) else one[0]["content"] for one in completions]


def vowels(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
    """A reward that differs between any two texts."""
    return [sum(text.count(v) for v in "aeiou") - 0.01 * sum(map(ord, text)) / 100 for text in texts(completions)]


def trainer(make: Any, config: Any, folder: Path, reward: Any = vowels, *, prompts: int = 4, **settings: Any) -> Any:
    """A trainer of a TRL kind on a tiny Qwen 2, all of whose weights learn."""
    model = folder / "tiny"
    if not model.exists():
        save_causal(model)
    own: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 8,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "logging_steps": 1,
        **settings,
    }
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": f"Hi {i}"}]} for i in range(prompts)])
    return make(str(model), reward, config(output_dir=str(folder / "out"), **own), train_dataset=rows)
