"""A bucket itself as the directory, with and without a slash behind it; an endpoint that holds the bucket."""

from __future__ import annotations

import numpy as np
import pytest

import ckptstore as ck
from ckptstore.cli.main import main
from ckptstore.storage.registry import locate


@pytest.fixture(params=["minio", "gcs_server"])
def server(request, monkeypatch):
    server = request.getfixturevalue(request.param)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def bucket_url(server):
    return f"{'gs' if hasattr(server, 'processes') else 's3'}://{server.make_bucket()}"


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_commands_take_a_bucket_as_the_directory(bucket_url, slash, capsys):
    ck.Saver().save({"w": np.arange(3.0)}, f"{bucket_url}/model", 7)
    for command in ("ls", "inspect", "verify", "gc", "repair"):
        assert main([command, bucket_url + slash]) == 0, command
        printed = capsys.readouterr()
        assert "model-7" in printed.out + printed.err or command == "gc"


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_bucket_alone_is_no_checkpoint(bucket_url, slash):
    ck.Saver().save({"w": np.arange(3.0)}, f"{bucket_url}/model", 7)
    with pytest.raises(ck.NotFoundError, match="names a bucket and nothing in it") as caught:
        ck.open_checkpoint(bucket_url + slash)
    assert caught.value.url == bucket_url + slash
    assert not ck.checkpoint_exists(bucket_url + slash)


def test_the_empty_name_in_a_bucket_is_opened_with_a_slash(bucket_url):
    # What saver.save(sess, "s3://bucket/") of TensorFlow writes.
    ck.Saver().save({"w": np.arange(3.0)}, f"{bucket_url}/model", write_state=False)
    for ending in ("index", "data-00000-of-00001"):
        place = locate(bucket_url).child(f"model.{ending}")
        place.storage.put_new(locate(bucket_url).child(f".{ending}").key, place.storage.get(place.key).data)
    assert ck.load_checkpoint(f"{bucket_url}/").get_tensor("w").tolist() == [0.0, 1.0, 2.0]
    with pytest.raises(ck.NotFoundError):
        ck.open_checkpoint(bucket_url)


def test_an_endpoint_with_the_bucket_in_its_path_is_refused_by_name(server, bucket_url):
    options = server.options | {"endpoint_url": f"{server.options['endpoint_url']}/{bucket_url[5:]}"}
    for call in (
        lambda: ck.latest_checkpoint(f"{bucket_url}/run", storage_options=options),
        lambda: ck.open_checkpoint(f"{bucket_url}/run/model-1", storage_options=options),
        lambda: ck.Saver().save({"w": 1.0}, f"{bucket_url}/run/model", storage_options=options),
    ):
        with pytest.raises(ck.UsageError, match="the endpoint holds the bucket") as caught:
            call()
        assert caught.value.expected == server.options["endpoint_url"]
