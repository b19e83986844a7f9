"""`apply` and `delete`."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2

from goalstate.cli import changes
from goalstate.cli.output import Output
from goalstate.gs.pb.goalstate.northbound.v1 import dataplane_manager_pb2 as api
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from tests.cli import region
from tests.cli.conftest import Run
from tests.cli.servers import Publisher

TWO = """\
vpcs:
- {id: v1, cidr: 10.0.0.0/16, tunnel_id: 1}
---
subnets:
- {id: s1, vpc_id: v1, cidr: 10.0.1.0/24}
"""


@pytest.fixture
def two(tmp_path: Path) -> Path:
    file = tmp_path / "two.yaml"
    file.write_text(TWO)
    return file


def refuse(intent: intent_pb2.Intent) -> api.ApplyReply:
    return api.ApplyReply(
        violations=[
            api.Violation(path="subnets[0].cidr", reason="BAD_CIDR", message="[red]no[/red]"),
            api.Violation(path="subnets[0].vpc_id", reason="UNKNOWN_REFERENCE", message="no v1"),
        ]
    )


def test_each_document_of_a_file_is_sent_as_one_change(
    run: Run, publisher: Publisher, two: Path
) -> None:
    ran = run("apply", two)
    assert ran.code == 0, ran
    assert [[f.name for f, _ in i.ListFields()] for i in publisher.applied] == [
        ["vpcs"],
        ["subnets"],
    ]
    assert "accepted: 2 intents up to change 2, 4 objects changed" in ran.out


def test_the_result_as_json_is_one_document_on_stdout(
    run: Run, publisher: Publisher, two: Path
) -> None:
    assert run("apply", two, "--json").document == {
        "accepted": 2,
        "refused": 0,
        "not_sent": 0,
        "change": 2,
        "changed_objects": 4,
        "streams": {region.STREAM: "3/2"},
        "refusals": [],
        "wait": None,
    }


def test_standard_input_is_read_as_text_or_as_a_serialized_intent(
    run: Run, publisher: Publisher
) -> None:
    assert run("apply", "-", stdin=TWO).code == 0
    assert run("apply", "-", stdin=region.intent().SerializeToString()).code == 0
    assert len(publisher.applied) == 3
    assert publisher.applied[2] == region.intent()


def test_json_and_serialized_files_and_directories_are_taken(
    run: Run, publisher: Publisher, tmp_path: Path
) -> None:
    (tmp_path / "b.json").write_text('{"vpcs": [{"id": "from-json"}]}')
    intent = intent_pb2.Intent(vpcs=[intent_pb2.Vpc(id="from-pb")])
    (tmp_path / "a.pb").write_bytes(intent.SerializeToString())
    (tmp_path / "readme.txt").write_text("not an intent")
    assert run("apply", tmp_path).code == 0
    assert [intent.vpcs[0].id for intent in publisher.applied] == ["from-pb", "from-json"]


@pytest.fixture
def more(tmp_path: Path) -> Path:
    file = tmp_path / "more.yaml"
    file.write_text("vpcs: [{id: v2}]\n---\nvpcs: [{id: v3}]")
    return file


def test_the_first_refusal_ends_it_and_what_was_not_sent_is_told(
    run: Run, publisher: Publisher, two: Path, more: Path
) -> None:
    publisher.answer = lambda intent: refuse(intent) if intent.subnets else publisher.accept(intent)
    ran = run("apply", two, more)
    assert ran.code == 1
    assert f"refused: {two}, document 2, 2 violations" in ran.out
    assert "subnets[0].cidr" in ran.out
    assert "[red]no[/red]" in ran.out
    assert "UNKNOWN_REFERENCE" in ran.out
    assert "2 documents after the refused one were not sent (--keep-going sends them)" in ran.out
    assert "accepted: 1 intents" in ran.out
    assert len(publisher.applied) == 2
    document = run("apply", two, more, "--json").document
    counts = ("accepted", "refused", "not_sent")
    assert [document[name] for name in counts] == [1, 1, 2]


def test_what_comes_after_a_refusal_is_sent_where_that_is_asked_for(
    run: Run, publisher: Publisher, two: Path, more: Path
) -> None:
    publisher.answer = lambda intent: refuse(intent) if intent.subnets else publisher.accept(intent)
    ran = run("apply", two, more, "--keep-going")
    assert ran.code == 1
    assert "not sent" not in ran.out
    assert "accepted: 3 intents" in ran.out
    assert len(publisher.applied) == 4


def test_a_flood_of_violations_is_cut_for_people_and_whole_in_json(
    run: Run, publisher: Publisher
) -> None:
    flood = [
        api.Violation(path=f"ports[{n}].host_id", reason="UNKNOWN_REFERENCE", message="no host")
        for n in range(23)
    ]
    publisher.answer = lambda intent: api.ApplyReply(violations=flood)
    ran = run("apply", "-", stdin="vpcs: [{id: v}]")
    assert "23 violations" in ran.out
    assert "ports[19].host_id" in ran.out
    assert "ports[20].host_id" not in ran.out
    assert "… and 3 more (--json has all)" in ran.out
    (refusal,) = run("apply", "-", "--json", stdin="vpcs: [{id: v}]").document["refusals"]
    assert len(refusal["violations"]) == 23


def test_a_refusal_as_json_names_file_document_and_path(
    run: Run, publisher: Publisher, two: Path
) -> None:
    publisher.answer = refuse
    ran = run("apply", two, "--json", "--wait", "--keep-going")
    assert ran.code == 1
    document = ran.document
    assert (document["accepted"], document["refused"], document["wait"]) == (0, 2, None)
    assert document["refusals"][1] == {
        "source": str(two),
        "document": 2,
        "violations": [
            {"path": "subnets[0].cidr", "reason": "BAD_CIDR", "message": "[red]no[/red]"},
            {"path": "subnets[0].vpc_id", "reason": "UNKNOWN_REFERENCE", "message": "no v1"},
        ],
    }
    assert publisher.waited == []


def test_waiting_for_one_change_asks_for_it_by_number(run: Run, publisher: Publisher) -> None:
    ran = run("apply", "-", "--wait", "--timeout", "7", "--quorum", "0.5", stdin="vpcs: [{id: v}]")
    assert ran.code == 0
    assert "converged" in ran.out
    (request,) = publisher.waited
    assert (request.change, request.timeout_s, request.quorum) == (1, 7, 0.5)


def test_waiting_for_several_changes_asks_for_everything(
    run: Run, publisher: Publisher, two: Path
) -> None:
    assert run("apply", two, "--wait").code == 0
    assert publisher.waited[0].all


def test_waiting_for_a_repetition_asks_for_everything(run: Run, publisher: Publisher) -> None:
    publisher.answer = lambda intent: api.ApplyReply(change=9)
    ran = run("apply", "-", "--wait", stdin="vpcs: [{id: v}]")
    assert ran.code == 0
    assert "nothing differs" in ran.out
    assert publisher.waited[0].all


def test_not_converged_in_time_is_another_exit_code_than_refused(
    run: Run, publisher: Publisher
) -> None:
    publisher.waits = [api.WaitReply(hosts=3, hosts_applied=1, hosts_needed=3)]
    assert run("apply", "-", "--wait", stdin="vpcs: [{id: v}]").code == 3


def test_what_was_answered_before_the_publisher_went_away_is_told(
    run: Run, publisher: Publisher, two: Path
) -> None:
    publisher.answer = lambda intent: publisher.accept(intent) if intent.vpcs else None
    ran = run("apply", two, "--json")
    assert ran.code == 3
    assert "1 of 2 intents were answered before (change 1)" in ran.document["error"]
    assert f"{two}, document 2" in ran.err


@pytest.mark.parametrize(
    ("status", "code", "told"),
    [
        (grpc.StatusCode.UNAVAILABLE, 4, "cannot do the intent now: the log is gone"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 1, "too large"),
        (grpc.StatusCode.INVALID_ARGUMENT, 1, "refused the intent"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 3, "no answer to the intent in time"),
        (grpc.StatusCode.UNIMPLEMENTED, 2, "no DPM of this version"),
        (grpc.StatusCode.CANCELLED, 4, "ended the intent"),
        (grpc.StatusCode.INTERNAL, 70, "failed at the intent"),
    ],
)
def test_a_failing_publisher_is_told_with_its_reason(
    run: Run, publisher: Publisher, status: grpc.StatusCode, code: int, told: str
) -> None:
    publisher.failure = (status, "the log is gone")
    ran = run("apply", "-", stdin="vpcs: [{id: v}]")
    assert ran.code == code
    assert told in ran.err
    assert "Traceback" not in ran.err


def test_the_violations_in_a_status_are_shown_as_well(run: Run, publisher: Publisher) -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(
        field="vpcs[0].cidr", description="BAD_CIDR: it is none", reason="BAD_CIDR"
    )
    publisher.violations = error_details_pb2.BadRequest(field_violations=[violation])
    ran = run("apply", "-", "--json", stdin="vpcs: [{id: v}]")
    assert ran.code == 1
    assert ran.document["detail"] == [
        {"path": "vpcs[0].cidr", "reason": "BAD_CIDR", "message": "it is none"}
    ]
    assert "vpcs[0].cidr BAD_CIDR it is none" in ran.err
    publisher.violations.field_violations.extend([violation] * 21)
    ran = run("apply", "-", stdin="vpcs: [{id: v}]")
    assert ran.err.count("vpcs[0].cidr BAD_CIDR") == 20
    assert "… and 2 more (--json has all)" in ran.err


def test_progress_is_shown_to_whoever_sees_it_and_never_on_stdout(
    run: Run, publisher: Publisher, two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Output, "interactive", True)
    step = api.WaitReply(hosts=3, hosts_applied=1, hosts_needed=3)
    publisher.waits = [step, *publisher.waits]
    ran = run("apply", two, "--wait", "--json")
    assert ran.code == 0
    assert ran.document["wait"]["converged"] is True
    publisher.waits = []
    assert run("apply", two, "--wait").code == 3


def test_without_a_publisher_the_message_says_how_to_get_one(run: Run, two: Path) -> None:
    ran = run("apply", two, "--dpm", "127.0.0.1:1")
    assert ran.code == 4
    assert "no DPM answers at 127.0.0.1:1" in ran.err
    assert "goalstate dpm serve" in ran.err
    assert ran.out == ""


@pytest.mark.parametrize("address", ["nowhere", "http://127.0.0.1:5", ":5", "host:port", ""])
def test_what_is_no_address_is_said_at_once(run: Run, two: Path, address: str) -> None:
    ran = run("apply", two, f"--dpm={address}")
    assert ran.code == 2
    assert "HOST:PORT" in ran.err


# --- files that are no intent ---


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.yaml", b"", "empty"),
        ("a.yaml", b"just a sentence", "a.yaml:1"),
        ("a.yaml", b"vpcs:\n- idd: v1\n", "a.yaml:2"),
        ("a.yaml", b"vpcs: [", "a.yaml:"),
        ("a.yaml", b"vpcs:\n- id: \xff\xfe\n", "a.yaml:2: this is not UTF-8"),
        ("a.json", b'{"vpcs": [{"id": 1}', "a.json:"),
        ("a.pb", b"\x0a\xff\xff", "neither text nor a serialized Intent"),
        ("a.pb", b"", "empty"),
        ("a.yaml", b"\x00\x01\x02", "neither text nor a serialized Intent"),
        ("a.pb", b"\x08\x66", "not an Intent"),
    ],
)
def test_a_file_that_is_no_intent_changes_nothing(
    run: Run, publisher: Publisher, tmp_path: Path, two: Path, name: str, content: bytes, told: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    ran = run("apply", two, file)
    assert ran.code == 2
    assert told in ran.err
    assert publisher.applied == []


def test_every_error_in_the_shape_of_a_file_is_told_at_once(
    run: Run, publisher: Publisher, tmp_path: Path
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("vpcs:\n- {idd: v1, tunnel_id: ten}\n---\ndeletes: [{kind: prot}]\n")
    ran = run("apply", file)
    assert ran.code == 2
    assert f"{file}: there are 3 errors" in ran.err
    assert f"{file}:2: vpcs[0].idd Vpc has no such field" in ran.err
    assert f"{file}:2: vpcs[0].tunnel_id 'ten' is no whole number" in ran.err
    assert f"{file}:4: deletes[0].kind there is no 'prot'" in ran.err
    detail = run("apply", file, "--json").document["detail"]
    assert [one["path"] for one in detail] == [
        "vpcs[0].idd",
        "vpcs[0].tunnel_id",
        "deletes[0].kind",
    ]
    assert publisher.applied == []


def test_a_missing_file_and_an_empty_directory_are_told(
    run: Run, publisher: Publisher, tmp_path: Path
) -> None:
    ran = run("apply", tmp_path / "none.yaml")
    assert ran.code == 2
    assert "none.yaml: No such file" in ran.err
    ran = run("apply", tmp_path)
    assert ran.code == 2
    assert "no file in this directory" in ran.err


def test_an_intent_over_the_limit_is_told_before_anything_is_sent(
    run: Run, publisher: Publisher, two: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "MESSAGE_LIMIT", changes._AROUND + 10)
    ran = run("apply", two)
    assert ran.code == 2
    assert f"{two}, document 1 has" in ran.err
    assert "split it" in ran.err
    assert publisher.applied == []


# --- delete ---


def test_delete_sends_one_deletion(run: Run, publisher: Publisher) -> None:
    assert run("delete", "security-group", "sg", "--cascade").code == 0
    assert run("delete", "PORT", "p").code == 0
    first, second = (intent.deletes[0] for intent in publisher.applied)
    assert (first.kind, first.id, first.cascade) == (intent_pb2.SECURITY_GROUP, "sg", True)
    assert (second.kind, second.id, second.cascade) == (intent_pb2.PORT, "p", False)


def test_delete_of_an_unknown_kind_lists_the_kinds(run: Run, publisher: Publisher) -> None:
    ran = run("delete", "cloud", "c")
    assert ran.code == 2
    assert "security-group" in ran.err
    assert publisher.applied == []


def test_a_refused_deletion_is_told(run: Run, publisher: Publisher) -> None:
    publisher.answer = lambda intent: api.ApplyReply(
        violations=[api.Violation(path="deletes[0]", reason="IN_USE", message="port p1 uses it")]
    )
    ran = run("delete", "subnet", "s1")
    assert ran.code == 1
    assert "delete subnet s1" in ran.out
    assert "port p1 uses it" in ran.out
    assert "--cascade" in ran.out
