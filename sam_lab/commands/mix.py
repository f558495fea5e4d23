"""`sam-alm mix`: builds OpenReasonAQA."""

import argparse

from sam_lab.data.coverage import coverage_table, parse_audio_roots
from sam_lab.data.openreasonaqa import build_openreasonaqa, report_table


def run(arguments: argparse.Namespace) -> int:
    """Builds the mix and prints what is in it."""
    names = "size reading caption_rule seed closed_prefix skip_unanswerable max_missing tokenizer cutoff".split()
    report = build_openreasonaqa(
        arguments.openaqa,
        arguments.reasonaqa,
        arguments.output,
        lowercase=not arguments.keep_case,
        audio_roots=parse_audio_roots(arguments.audio_root),
        check_audio=not arguments.no_audio_check,
        missing_sources=arguments.missing_source,
        **{name: getattr(arguments, name) for name in names},
    )
    print(coverage_table(report["coverage"]), report_table(report), sep="\n\n")
    return 0
