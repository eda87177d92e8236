"""A Trainer of Lightning saves to disk and to S3, and goes on from there in a new process, or raises."""

from __future__ import annotations

import logging
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

import ckptstore as ck
from ckptstore.lightning import CheckpointIO, ModelCheckpoint
from tests.engines.page import block

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
DATA = torch.linspace(-1, 1, 32 * 4).reshape(32, 4)


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        # Of loaders without workers, and of torch's own deprecations.
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(params=["local", "minio"])
def directory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path.resolve())
    server = request.getfixturevalue("minio")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{server.make_bucket()}/run"


class Model(lightning.LightningModule):
    def __init__(self, width: int = 2, extra: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        torch.manual_seed(0)
        self.net = torch.nn.Linear(4, width)
        self.seen: list[int] = []

    def training_step(self, batch: Any, index: int) -> Any:
        self.seen.append(self.trainer.global_step)
        loss = self.net(batch).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1)}


def fit(directory: str, epochs: int, *, model: Any = None, ckpt_path: Any = None, **options: Any) -> Any:
    """Train for so many epochs of 4 steps; return the model."""
    model = model or Model()
    callback = options.pop("callback", None) or ModelCheckpoint(
        directory, monitor="loss", save_top_k=2, save_last=True
    )
    plugins = options.pop("plugins", None) or [CheckpointIO()]
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
        plugins=plugins,
        default_root_dir="/nonexistent",
        **options,
    )
    trainer.fit(model, torch.utils.data.DataLoader(DATA, batch_size=8), ckpt_path=ckpt_path)
    return model


def same(one: Any, other: Any) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)


def test_a_job_goes_on_from_last_best_and_a_url(directory: str) -> None:
    unbroken = fit(f"{directory}/unbroken", 4)
    # A first start finds nothing, and begins.
    first = fit(f"{directory}/run", 2, ckpt_path="last")
    assert first.seen == list(range(8))
    newest = ck.latest_checkpoint(f"{directory}/run")
    assert newest == f"{directory}/run/last.ckpt"
    with ck.open_checkpoint(newest) as checkpoint:
        assert checkpoint["state_dict.net.weight"].shape == (2, 4)
    again = fit(f"{directory}/run", 4, ckpt_path="last")
    assert again.seen == list(range(8, 16))
    assert same(again, unbroken)

    found = ModelCheckpoint(f"{directory}/run", monitor="loss", save_top_k=2, save_last=True).best_model_path
    assert found.startswith(f"{directory}/run/epoch=3")
    best = fit(f"{directory}/run", 5, ckpt_path="best")
    assert best.seen == list(range(16, 20))
    other = fit(f"{directory}/other", 4, ckpt_path=f"{directory}/unbroken/epoch=2-step=12.ckpt")
    assert other.seen == list(range(12, 16))
    loaded = CheckpointIO().load_checkpoint(f"{directory}/run/last.ckpt", map_location="cpu")
    assert loaded["hyper_parameters"] == {"width": 2, "extra": None}
    assert loaded["global_step"] == 20


def test_top_k_is_lightnings_and_what_was_gone_on_from_stays(tmp_path: Path) -> None:
    url = str(tmp_path.resolve())
    fit(url, 3)
    there = {path.name.removesuffix(".index") for path in tmp_path.glob("*.index")}
    assert there == {"epoch=1-step=8.ckpt", "epoch=2-step=12.ckpt", "last.ckpt"}
    fit(url, 6, ckpt_path=f"{url}/epoch=1-step=8.ckpt")
    assert ck.checkpoint_exists(f"{url}/epoch=1-step=8.ckpt")


def test_never_from_scratch_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = str(tmp_path.resolve())
    fit(url, 1)
    monkeypatch.setattr("lightning.pytorch.trainer.connectors.checkpoint_connector.get_filesystem", blind)
    with pytest.raises(ck.UsageError, match="has not taken it"):
        fit(url, 2, ckpt_path="last")
    monkeypatch.undo()
    for data in tmp_path.glob("*.data-*"):
        data.write_bytes(b"")
    with pytest.raises(ck.CorruptError):
        fit(url, 2, ckpt_path="last")
    with pytest.raises(ck.NotFoundError):
        fit(url, 2, ckpt_path=f"{url}/missing.ckpt")


def blind(path: Any) -> Any:
    """Return a file system that sees nothing, as that of another endpoint."""
    del path
    return SimpleNamespace(exists=lambda path: False, modified=lambda path: time.time())


def test_what_cannot_be_saved_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(ck.UsageError, match=r"\['hyper_parameters'\]\['extra'\]") as caught:
        fit(str(tmp_path), 1, model=Model(extra=object()))
    assert "object" in str(caught.value)
    assert not list(tmp_path.glob("*.index"))


def test_a_trainer_that_saves_in_another_way_is_refused(tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path)
    trainer = SimpleNamespace(strategy=ModelParallelStrategy())
    with pytest.raises(ck.UnsupportedError, match="ModelParallelStrategy"):
        callback.setup(trainer, None, "fit")
    with pytest.raises(ck.UsageError, match=r"plugins=\[ckptstore\.lightning"):
        fit(str(tmp_path), 1, plugins=[lightning.pytorch.plugins.io.TorchCheckpointIO()])
    for options in ({"dirpath": ""}, {"dirpath": tmp_path, "save_last": "link"}):
        with pytest.raises(ck.UsageError):
            ModelCheckpoint(**options)
    with pytest.raises(ck.UsageError, match="map_location"):
        CheckpointIO().load_checkpoint(tmp_path, map_location={})


def test_the_lines_of_the_page(tmp_path: Path) -> None:
    loader = torch.utils.data.DataLoader(DATA, batch_size=8)
    for epochs in (1, 3):
        scene = {"lightning": lightning, "model": Model(), "loader": loader, "directory": str(tmp_path)}
        exec(block("trainer", "frameworks/lightning"), scene | {"max_epochs": epochs})
    assert len(scene["model"].seen) == 8
