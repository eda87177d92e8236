"""After saves of every fate: no thread, file descriptor, socket, temporary file or unfinished upload."""

from __future__ import annotations

from pathlib import Path

from tests.lifecycle.child import run

# Saves that end well, are cancelled, skipped and fail; once to warm up, and then again and again.
ROUNDS = """
doors = {}

class Door(StorageWrapper):
    def intercept(self, primitive, keys, call):
        if primitive in doors:
            reached.set()
            door, error = doors[primitive]
            door.wait(60)
            if error is not None:
                raise error
        return call()

wrap(Door)
BIG = {f"w{number}": np.full(1 << 20, float(number)) for number in range(6)}

def shut(primitive, error=None):
    reached.clear()
    doors[primitive] = threading.Event(), error
    return doors[primitive][0]

def one_round(url, number):
    with ck.Saver(max_to_keep=2, queue="skip", reuse_unchanged=True) as saver:
        saver.save(BIG, url, 10 * number)
        saver.save_async(BIG, url, 10 * number + 1).result()
        door = shut("upload.send")
        cancelled = saver.save_async({"w": np.ones(4 << 20)}, url, 10 * number + 2)
        skipped = saver.save_async(W, url, 10 * number + 3)
        last = saver.save_async(W, url, 10 * number + 4)
        assert reached.wait(60)
        assert cancelled.cancel()
        doors.clear()
        door.set()
        for handle in (cancelled, skipped):
            try:
                handle.result()
            except ck.SaveCancelledError:
                pass
            else:
                raise AssertionError(handle)
        last.result()
        door = shut("upload.commit", ck.StorageFullError("no room"))
        door.set()
        failed = saver.save_async({"new": np.full(5, number)}, url, 10 * number + 5)
        try:
            failed.result()
        except ck.StorageFullError:
            pass
        else:
            raise AssertionError("did not fail")
        doors.clear()

def open_files():
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            pass
    return sorted(found)
"""

CHECK = """
one_round(sys.argv[1] + "/m", 0)
threads, files = quiet(), open_files()
for number in range(1, 5):
    one_round(sys.argv[1] + "/m", number)
assert quiet() == threads, (quiet(), threads)
assert len(open_files()) <= len(files), (open_files(), files)
"""


def test_on_a_local_disk(tmp_path: Path) -> None:
    run(ROUNDS + CHECK + "\nassert threads == [], threads", str(tmp_path / "run"))
    names = {path.name for path in (tmp_path / "run").iterdir()} - {".ckptstore.lock"}
    assert {name.split(".")[0] for name in names} == {"checkpoint", "m-41", "m-44"}
    assert [name for name in names if ".tmp-" in name] == []


def test_in_a_bucket(minio: object) -> None:
    bucket = minio.make_bucket()  # type: ignore[attr-defined]
    run(ROUNDS + CHECK, f"s3://{bucket}/run", environment=minio.environment)  # type: ignore[attr-defined]
    assert minio.uploads(bucket) == []  # type: ignore[attr-defined]
    names = [key.rpartition("/")[2] for key in minio.keys(bucket)]  # type: ignore[attr-defined]
    assert {name.split(".")[0] for name in names} == {"checkpoint", "m-41", "m-44"}
