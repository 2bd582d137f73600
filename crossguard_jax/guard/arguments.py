"""``--why``, as the command line declares it for a verb that scores."""

import argparse

PARTS = ("halves", "category", "picture")
"""What an explanation may have."""


def add_why(parser: argparse.ArgumentParser) -> None:
    """Declares ``--why``, ``--why-parts`` and ``--heatmaps``."""
    add = parser.add_argument_group(
        "why a verdict is unsafe",
        'A row then has "why", null where it is safe: text_alone and picture_alone (p_unsafe of\n'
        "either half), joint_only (unsafe only in combination), category and p_category, heat\n"
        "(nats by patch of each picture) and peaks (the patch that counts most, in pixels).",
    ).add_argument
    add(
        "--why",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="explain; FOLDER is what crossguard calibrate --as why wrote, without it a text alone "
        "has no other pictures to stand beside, and no category is named",
    )
    add(
        "--why-parts",
        nargs="+",
        choices=PARTS,
        help="compute these alone (default: all)",
    )
    add("--heatmaps", metavar="FOLDER", help="write the pictures with their maps on them there")
