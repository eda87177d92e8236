"""The exception tree: what a handler may rely on."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import re

import pytest

from ckptstore import errors
from ckptstore.errors import (
    AccessError,
    CkptStoreError,
    CorruptError,
    FormatError,
    NotFoundError,
    StorageFullError,
    TensorNotFoundError,
    TransientError,
    UsageError,
    from_os_error,
)

# Codes are append-only: scripts match on them. Name → (code, the classes a handler may catch it by).
TREE = {
    "CkptStoreError": ("error", (Exception,)),
    "UsageError": ("usage", (CkptStoreError, ValueError)),
    "NotFoundError": ("not-found", (CkptStoreError, FileNotFoundError)),
    "TensorNotFoundError": ("tensor-not-found", (NotFoundError, FileNotFoundError, KeyError)),
    "CorruptError": ("corrupt", (CkptStoreError,)),
    "FormatError": ("format", (errors.CorruptError,)),
    "TruncatedFileError": ("truncated", (errors.CorruptError,)),
    "ChecksumError": ("checksum", (errors.CorruptError,)),
    "IncompleteBundleError": ("incomplete", (errors.CorruptError,)),
    "ConflictError": ("conflict", (CkptStoreError, FileExistsError)),
    "FencedError": ("fenced", (errors.ConflictError,)),
    "SaveCancelledError": ("cancelled", (errors.ConflictError,)),
    "AccessError": ("access", (CkptStoreError, PermissionError)),
    "StorageFullError": ("storage-full", (CkptStoreError, OSError)),
    "TransientError": ("transient", (CkptStoreError, OSError)),
    "DeadlineError": ("deadline", (TransientError, TimeoutError)),
    "RanksMissingError": ("ranks-missing", (errors.DeadlineError, TimeoutError)),
    "CoordinatorLostError": ("coordinator-lost", (TransientError,)),
    "AmbiguousOutcomeError": ("ambiguous", (CkptStoreError,)),
    "UnsupportedError": ("unsupported", (CkptStoreError, NotImplementedError)),
}
CLASSES = [getattr(errors, name) for name in sorted(TREE)]

FIELDS = {
    "url": "s3://bucket/run/model-1.index",
    "tensor": "net/w",
    "offset": 4096,
    "expected": "0x1234",
    "actual": "0x5678",
    "hint": "Restore an older checkpoint.",
}


def test_every_class_is_in_the_table_and_exported():
    values = vars(errors).values()
    defined = {cls.__name__ for cls in values if isinstance(cls, type) and issubclass(cls, CkptStoreError)}
    assert defined == set(TREE)
    assert defined | {"CkptStoreWarning"} == set(errors.__all__)


def test_the_warning_is_no_error_of_the_tree():
    assert issubclass(errors.CkptStoreWarning, UserWarning)
    assert not issubclass(errors.CkptStoreWarning, CkptStoreError)


@pytest.mark.parametrize("name", sorted(TREE))
def test_code_and_bases(name):
    code, bases = TREE[name]
    cls = getattr(errors, name)
    assert cls.code == code
    for base in bases:
        assert issubclass(cls, base)


def test_codes_are_unique():
    codes = [cls.code for cls in CLASSES]
    assert len(codes) == len(set(codes))


def test_the_docstring_draws_the_whole_tree():
    for cls in CLASSES[1:]:
        assert re.search(rf"\b{cls.__name__}\b", errors.__doc__), cls.__name__


def test_kinds_that_ask_for_different_actions_do_not_overlap():
    assert not issubclass(StorageFullError, TransientError)  # retrying a full disk does not help
    assert not issubclass(errors.AmbiguousOutcomeError, OSError)  # no blanket retry on OSError
    assert not issubclass(errors.CorruptError, (OSError, ValueError))
    assert not issubclass(NotFoundError, errors.CorruptError)


@pytest.mark.parametrize("cls", CLASSES)
def test_message_says_what_where_expected_actual_and_hint_in_this_order(cls):
    assert str(cls("checksum of the tensor differs", **FIELDS)) == (
        "checksum of the tensor differs [tensor 'net/w', s3://bucket/run/model-1.index, at byte 4096]: "
        "expected 0x1234, found 0x5678. Restore an older checkpoint."
    )


@pytest.mark.parametrize("cls", CLASSES)
def test_message_leaves_out_what_is_not_known(cls):
    # KeyError and OSError have a __str__ of their own, which must not win.
    end = f". {cls.next_step}" if cls.next_step else ""
    assert str(cls("no such thing")) == "no such thing" + end
    assert str(cls("no such thing", expected=2)) == "no such thing: expected 2" + end
    assert str(cls("no such thing", actual=3)) == "no such thing: found 3" + end
    assert str(cls("no such thing", offset=0, url="u")) == "no such thing [u, at byte 0]" + end


def test_a_damaged_file_always_has_a_next_step():
    assert FormatError("bad length").hint == CorruptError.next_step
    assert FormatError("bad length", hint="Look again.").hint == "Look again."


def test_a_zero_and_an_empty_text_are_told():
    error = UsageError("bad length", offset=0, expected=0, actual="")
    assert str(error) == "bad length [at byte 0]: expected 0, found "


@pytest.mark.parametrize("cls", CLASSES)
def test_survives_pickling_and_copying_with_class_message_and_fields(cls):
    error = cls("what failed", **FIELDS)
    error.add_note("seen while restoring")
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is cls
        assert str(again) == str(error)
        assert again.args == error.args
        for field, value in FIELDS.items():
            assert getattr(again, field) == value
        assert again.what == "what failed"
        assert again.__notes__ == ["seen while restoring"]


def test_expected_and_actual_are_kept_as_text():
    error = FormatError("wrong shape", expected=(2, 3), actual=[3, 2])
    assert (error.expected, error.actual) == ("(2, 3)", "[3, 2]")


def test_what_is_positional_and_the_rest_is_not():
    with pytest.raises(TypeError):
        CkptStoreError("what", "url")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("number", "cls"),
    [
        (errno.ENOENT, NotFoundError),
        (errno.EACCES, AccessError),
        (errno.EPERM, AccessError),
        (errno.EROFS, AccessError),
        (errno.ENOSPC, StorageFullError),
        (errno.EDQUOT, StorageFullError),
        (errno.EFBIG, StorageFullError),
        (errno.ENOTDIR, UsageError),
        (errno.EISDIR, UsageError),
        (errno.ENAMETOOLONG, UsageError),
        (errno.ELOOP, UsageError),
        (errno.EIO, TransientError),
        (errno.ETIMEDOUT, TransientError),
        (errno.EMFILE, TransientError),
    ],
)
def test_errors_of_the_operating_system_are_translated_by_errno(number, cls):
    error = from_os_error(OSError(number, os.strerror(number)), "cannot read the index", "run/model.index")
    assert type(error) is cls
    assert error.url == "run/model.index"
    assert error.hint
    assert str(error).startswith(f"cannot read the index: {os.strerror(number)} [run/model.index]")
    if isinstance(error, OSError):
        assert error.errno == number
        assert error.strerror == os.strerror(number)


def test_the_errno_survives_pickling():
    error = from_os_error(OSError(errno.ENOSPC, "No space left on device"), "cannot write", "run/model.index")
    again = pickle.loads(pickle.dumps(error))
    assert again.errno == errno.ENOSPC
    assert str(again) == str(error)


def test_an_os_error_without_errno_is_transient_and_named():
    error = from_os_error(OSError("odd"), "cannot read", "x")
    assert type(error) is TransientError
    assert str(error).startswith("cannot read: OSError [x]")


def test_tensor_not_found_is_caught_as_key_error():
    with pytest.raises(KeyError) as caught:
        raise TensorNotFoundError("no such tensor", tensor="w", hint="Close names: 'w1'.")
    assert str(caught.value) == "no such tensor [tensor 'w']. Close names: 'w1'."


def test_missing_ranks_are_named_also_after_pickling():
    error = errors.RanksMissingError("late", ranks=[2], host_names=["node-b"], phase="write", url="mem://x")
    again = pickle.loads(pickle.dumps(error))
    for one in (error, again):
        assert (one.ranks, one.host_names, one.phase, one.url) == ((2,), ("node-b",), "write", "mem://x")
