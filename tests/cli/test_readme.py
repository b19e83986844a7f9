"""The README's intents are accepted beside the region of its quick start."""

from __future__ import annotations

import re
from pathlib import Path

from goalstate.gs import intent_codec
from goalstate.gs.desired import Desired
from goalstate.gs.intent import ObjectKind
from goalstate.scale.generate import Region, parse_mix
from goalstate.scale.load import workload

README = Path(__file__).parents[2] / "README.md"


def test_the_workload_of_the_readme_is_one() -> None:
    text = README.read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(# my\.yaml\n.*?)```", text, re.DOTALL)
    assert workload.parse(block, "README.md").name == "my"


def test_every_intent_of_the_readme_is_accepted_after_its_quick_start() -> None:
    text = README.read_text(encoding="utf-8")
    generated = re.search(r"goalstate generate --hosts (\d+) --vpcs (\S+) --seed (\d+)", text)
    assert generated is not None
    desired = Desired()
    region = Region(int(generated[1]), parse_mix(generated[2]), int(generated[3]))
    for intent in region.intents():
        desired.commit(desired.plan(intent))
    intents = [
        intent
        for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
        if "phases:" not in block
        for intent in intent_codec.load(block, "README.md")
    ]
    traced = re.search(r"goalstate trace (vm\d) (vm\d)", text)
    assert traced is not None
    for number, intent in enumerate(intents):
        desired.commit(desired.plan(intent))
        if not number:
            ports = [desired.get(ObjectKind.PORT, id_) for id_ in traced.groups()]
            assert len({port.host_id for port in ports}) == 2
    assert len(intents) == 3
