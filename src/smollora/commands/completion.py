"""What the shell offers after TAB: recipes, recipe keys, formats.

Each function takes what was typed so far and returns what could stand there, with a word of
explanation where the shell shows one. Nothing heavy is imported: TAB should answer at once.
"""

from __future__ import annotations

from pathlib import Path

Offer = tuple[str, str]


def complete_recipe(incomplete: str) -> list[Offer]:
    """Shipped recipes, and .yaml files below the folder that was typed."""
    from smollora.config import shipped_recipes

    offers = [(name, "shipped recipe") for name in shipped_recipes()]
    typed = Path(incomplete or ".")
    folder = typed if incomplete.endswith("/") or not incomplete else typed.parent
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.suffix in (".yaml", ".yml") and not path.name.startswith("."):
                offers.append((str(path), "recipe file"))
    return [offer for offer in offers if offer[0].startswith(incomplete)]


def complete_setting(incomplete: str) -> list[Offer]:
    """Keys of the recipe as `key=`; after the sign, the values of a key that takes but few."""
    from smollora.recipe_keys import recipe_keys

    typed, sign, value = incomplete.partition("=")
    keys = [key for key in recipe_keys() if not key.in_list]
    if not sign:
        return [(f"{key.path}=", key.description) for key in keys if key.path.startswith(typed)]
    if typed == "model.format":
        return [(f"{typed}={name}", said) for name, said in complete_format(value)]
    choices = next((key.takes.split(" | ") for key in keys if key.path == typed), [])
    if len(choices) < 2:
        return []
    return [(f"{typed}={choice}", "") for choice in choices if choice.startswith(value)]


def complete_format(incomplete: str) -> list[Offer]:
    """Tool-call formats, each with the vLLM parser that reads it."""
    from smollora.formats import FORMATS

    return [
        (name, f"vLLM parser {fmt.vllm_parser}")
        for name, fmt in FORMATS.items()
        if name.startswith(incomplete)
    ]


def complete_stage(incomplete: str) -> list[str]:
    """Stages of a run, for --force."""
    from smollora.pipeline import STAGES

    return [name for name in STAGES if name.startswith(incomplete)]
