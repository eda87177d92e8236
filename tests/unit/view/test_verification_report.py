from __future__ import annotations

from ckptstore.bundle.verify.verify import BundleFault
from ckptstore.errors import AccessError
from ckptstore.types import ByteRange
from ckptstore.view.problems import Problem
from ckptstore.view.verification_report import (
    CheckedFacts,
    VerificationFacts,
    checked_lines,
    verification_lines,
    verification_object,
)

FAULT = BundleFault(
    "the checksum does not match [tensor 'w', m.data-00000-of-00001, at byte 8]",
    "checksum",
    "m.data-00000-of-00001",
    "w",
    ByteRange(8, 24),
    "0x00000001",
    "0x00000002",
)
GOOD = CheckedFacts("model-1", "run/model-1", 12, 2048)
BAD = CheckedFacts("model-2", "run/model-2", 12, 2048, [Problem.of_fault(FAULT)])
DENIED = CheckedFacts("model-3", "run/model-3", 0, 0, [Problem.of_error(AccessError("no"))], is_known=False)


def text(lines):
    return [line for line, _ in lines]


def test_a_good_checkpoint_is_one_line():
    assert text(checked_lines(GOOD)) == ["ok       model-1  12 tensors, 2.0 KiB checked"]


def test_each_fault_has_its_line():
    assert text(checked_lines(BAD)) == [
        "FAULTY   model-2  1 fault (12 tensors, 2.0 KiB checked)",
        "  checksum: the checksum does not match [tensor 'w', m.data-00000-of-00001, at byte 8]",
    ]


def test_what_could_not_be_looked_at_is_not_called_faulty():
    assert text(checked_lines(DENIED))[0] == "UNKNOWN  model-3"
    assert VerificationFacts("run", False, [DENIED]).faulty == 0
    assert not VerificationFacts("run", False, [DENIED]).ok


def test_notes_are_told():
    odd = CheckedFacts("model-1", "run/model-1", 1, 8, notes=["odd\x1b"])
    assert text(checked_lines(odd))[1] == "  note: odd\\x1b"


def test_the_last_lines():
    assert text(verification_lines(VerificationFacts("run", False, [GOOD]))) == []
    assert text(verification_lines(VerificationFacts("run", False, [GOOD, GOOD]))) == [
        "2 checkpoints: all good"
    ]
    assert text(verification_lines(VerificationFacts("run", True, [GOOD, BAD, DENIED]))) == [
        "3 checkpoints: 1 faulty, 1 unknown",
        "quick: only index and file sizes; without --quick every tensor is checked",
    ]


def test_the_object_names_tensor_file_and_bytes():
    found = verification_object(VerificationFacts("run", False, [GOOD, BAD]))
    assert (found["ok"], found["quick"], found["target"]) == (False, False, "run")
    assert found["checkpoints"][0]["faults"] == []
    fault = found["checkpoints"][1]["faults"][0]
    assert (fault["tensor"], fault["url"], fault["start"], fault["stop"]) == (
        "w",
        "m.data-00000-of-00001",
        8,
        24,
    )
    assert (fault["code"], fault["expected"], fault["actual"]) == ("checksum", "0x00000001", "0x00000002")
