"""Render the settings of the bundles as Markdown tables in their model cards; `--check` only compares.

A model card marks a table with two comments; what stands between them is replaced:

    <!-- settings: train -->
    <!-- end of settings -->
"""

import argparse
import importlib
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PATTERN = re.compile(r"(<!-- settings: (train|inference) -->\n)(.*?)(<!-- end of settings -->)", re.DOTALL)
MODELS = {"train": "Training", "inference": "Inference"}


def render(text: str, bundle: Path) -> str:
    """A model card with its tables of settings replaced."""
    from label_efficient.setting_help import settings_table
    from label_efficient.settings import setting_names

    def table(match: re.Match) -> str:
        config = json.loads((bundle / "configs" / f"{match[2]}.json").read_text(encoding="utf-8"))
        model = getattr(importlib.import_module(f"{bundle.name}.settings"), MODELS[match[2]])
        return match[1] + settings_table(model, {n: config[n] for n in setting_names(config)}) + match[4]

    return PATTERN.sub(table, text)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 1 if `--check` finds a table that is out of step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a table is out of step")
    options = parser.parse_args(arguments)
    stale = []
    for card in sorted(ROOT.glob("bundles/*/docs/README.md")):
        bundle = card.parents[1]
        sys.path[:0] = [str(bundle), str(ROOT / "bundles" / "common")]
        text = card.read_text(encoding="utf-8")
        rendered = render(text, bundle)
        if rendered != text:
            stale.append(str(card.relative_to(ROOT)))
            if not options.check:
                card.write_text(rendered, encoding="utf-8")
    print("\n".join([f"{'out of step' if options.check else 'written'}: {path}" for path in stale]) or "in step")
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
