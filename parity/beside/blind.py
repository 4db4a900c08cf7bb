"""Which known defects a device's errors hide: their effect on their own probe is below the limit there."""

from __future__ import annotations

from collections.abc import Callable

from ..gate.defects import Defect, catalogue
from ..gate.diagnosis import patched_logits
from ..gate.families import Family


def hidden(families: dict[str, Family], known: dict[str, Defect], progress: Callable[[str], None]) -> list[str]:
    """Ids of the defects that no schedule of their mechanism's probe shows; `families` are those of the device."""
    found = []
    for defect in known.values():
        family = families.get(defect.mechanism)
        if family is None or not defect.reference or defect.condition:
            continue
        progress(f"what the device's errors hide: {defect.id}")
        if not any(_shows(family, schedule, defect) for schedule in family.probe.schedules):
            found.append(defect.id)
    return found


def _shows(family: Family, schedule: str, defect: Defect) -> bool:
    logits = patched_logits(family, schedule, [defect], family.probe.dtype)
    return bool(family.clear[: family.rows(schedule)].any()) and family.measure(schedule, logits).ratio > 1


def note(families: dict[str, Family], progress: Callable[[str], None]) -> str:
    """For the report: which of the catalogue's defects the verdict cannot see."""
    known = catalogue()
    names = hidden(families, known, progress)
    said = f"hide {len(names)} of the known defects, which this verdict cannot see: {', '.join(names)}."
    return f"The device's errors {said if names else 'hide none of the known defects.'}"
