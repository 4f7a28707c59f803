"""What the pages of all bundles have in common: settings and versions, what is said of demo data, the disclaimer."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from label_efficient.report.page import Section, definition_list, section, table, write_report
from label_efficient.settings import Settings


def write_bundle_page(
    output_dir: Path,
    *,
    title: str,
    sections: Sequence[Section],
    settings: Settings,
    versions: Mapping[str, str],
    demo: bool = False,
) -> None:
    """Write `report.html`: the sections, then settings and versions.

    Args:
        output_dir: Where to write.
        title: Of the page.
        sections: What comes before the settings.
        settings: Of the run; those that differ from the defaults are marked.
        versions: Of the packages, by name.
        demo: Whether the data are the synthetic ones that are built in.
    """
    rows = [
        [name, "null" if value is None else str(value), "changed" if name in settings.changed else ""]
        for name, value in settings.items()
    ]
    used = section("Settings and versions", table(["setting", "value", ""], rows), definition_list(versions))
    notice = "Synthetic demo data: these figures say that the software works, and nothing about patients."
    write_report(
        output_dir / "report.html",
        title=title,
        sections=[*sections, used],
        notice=notice if demo else None,
        footer="Research software, not a medical device: not for diagnosis.",
    )
