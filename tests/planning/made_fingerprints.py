"""Fingerprints of datasets that need not exist, for several test files."""

from __future__ import annotations

from medseg_se.planning.facts import CaseFacts, ChannelFacts, Fingerprint, StructureFacts

PERCENTILES = {"0.5": 10.0, "5": 20.0, "50": 50.0, "95": 80.0, "99.5": 90.0}


def channel(name="T1", ct=False):
    return ChannelFacts(name, 50.0, 15.0, 0.0, 100.0, PERCENTILES, (1, 2, 1), ct)


def case(name, shape=(40, 48, 36), spacing=(1.0, 1.0, 1.0), cropped=None, structures=("near", "far")):
    volumes = dict.fromkeys(structures, 2.0)
    return CaseFacts(name, name, shape, cropped or shape, spacing, "RAS", (0.0,), (100.0,), 1.0, 1000, volumes)


def structure(name, value, cases, ml=2.0, frequency=0.03):
    return StructureFacts(name, (value,), cases, ml, ml, ml, (10.0, 10.0, 10.0), frequency, frequency)


def fingerprint(cases=None, structures=None, channels=None, pairs=(), background=0.9, **more):
    cases = cases or [case(f"c{number}") for number in range(10)]
    structures = structures or [structure("near", 1, len(cases)), structure("far", 2, len(cases))]
    return Fingerprint(
        name="made",
        source="dataset.json",
        inputs="0",
        channels=tuple(channels or [channel()]),
        cases=tuple(cases),
        structures=tuple(structures),
        background=background,
        pairs=tuple(pairs),
        together=((0,) * len(structures),) * len(structures),
        regions={},
        unusable=more.pop("unusable", {}),
        warnings=tuple(more.pop("warnings", ())),
        **more,
    )
