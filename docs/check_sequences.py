#!/usr/bin/env python3
"""Checks that every sequence of every Fieldpost agent is there once. Reads what `kcat -J` prints, one JSON object a line.

Needs the headers ce_id and ce_type (delivery.headers = "cloudevents" or "full"). See docs/consumers.md.
"""
import collections
import json
import sys


def ranges(lines):
    """Yields (agent, epoch), [(first, last), ...], is_gap for each record that has a ce_id."""
    for line in lines:
        record = json.loads(line, strict=False)
        flat = record.get("headers") or []
        headers = dict(zip(flat[::2], flat[1::2]))
        if "ce_id" not in headers:
            continue
        agent, epoch, sequence = headers["ce_id"].rsplit("/", 2)
        last = int(sequence)
        spans = [(last, last)]
        is_gap = headers.get("ce_type") == "io.fieldpost.gap.v1"
        if is_gap:
            # A loss outside the sequence (an unplugged line) has no range: it takes one number of its own.
            gap = json.loads(record["payload"])
            spans = gap.get("ranges") or [(gap.get("from", last), last)]
        yield (agent, epoch), spans, is_gap


def check(lines):
    """Returns lines of text and whether all is well."""
    found, records, gap_records = collections.defaultdict(list), collections.Counter(), collections.Counter()
    for who, spans, is_gap in ranges(lines):
        found[who] += [(first, last, is_gap) for first, last in spans]
        records[who] += 1
        gap_records[who] += is_gap
    text, good = [], True
    for (agent, epoch), spans in sorted(found.items()):
        spans.sort()
        missing, doubled, expected = [], [], 1
        for first, last, _ in spans:
            if first > expected:
                missing.append((expected, first - 1))
            elif first < expected:
                doubled.append((first, min(last, expected - 1)))
            expected = max(expected, last + 1)
        named = sum(last - first + 1 for first, last, is_gap in spans if is_gap)
        gaps = gap_records[agent, epoch]
        count = sum(last - first + 1 for first, last in missing)
        text.append(
            f"{agent} {epoch}: {min(spans)[0]}..{expected - 1}, {records[agent, epoch]} records, "
            f"{gaps} gap{'' if gaps == 1 else 's'} over {named} numbers, "
            f"{count} missing, {len(doubled)} doubled"
        )
        text += [f"  missing {first}..{last}" for first, last in missing[:10]]
        text += [f"  doubled {first}..{last}" for first, last in doubled[:10]]
        good = good and not missing and not doubled
    return text, good


if __name__ == "__main__":
    # The binary header fp is no UTF-8; nothing of it is needed here.
    text, good = check(open(sys.stdin.fileno(), encoding="utf-8", errors="replace"))
    print("\n".join(text) or "no record with a ce_id")
    sys.exit(0 if good and text else 1)
