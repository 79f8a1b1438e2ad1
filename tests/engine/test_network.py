import os
import socket
import subprocess
import sys
import time

import pytest
from huggingface_hub import constants

from repshift import CheckpointError, load_model, network
from repshift.network import hub_at_once, what_failed, why_unreachable


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_who_answers_can_be_reached(listening):
    assert why_unreachable(f"http://127.0.0.1:{listening}") is None


def test_who_refuses_cannot(listening):
    assert "127.0.0.1 cannot be reached" in why_unreachable("http://127.0.0.1:9")


def test_nobody_is_waited_for_longer_than_some_seconds(monkeypatch):
    monkeypatch.setattr(network, "PATIENCE", 0.2)
    monkeypatch.setattr(socket, "create_connection", lambda place, timeout: time.sleep(1) or socket.socket())
    began = time.monotonic()
    assert "no answer" in why_unreachable("https://example.org")
    assert time.monotonic() - began < 2


def test_behind_a_proxy_the_proxy_is_asked(listening, monkeypatch):
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{listening}")
    assert why_unreachable("https://nowhere.invalid") is None
    monkeypatch.setenv("https_proxy", "127.0.0.1:9")
    assert "127.0.0.1 cannot be reached" in why_unreachable("https://nowhere.invalid")


def test_the_hub_is_offline_only_while_it_cannot_be_reached(listening, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with hub_at_once() as why:
        assert "cannot be reached" in why
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listening}")
    with hub_at_once() as why:
        assert why is None
        assert not constants.HF_HUB_OFFLINE


def test_who_asked_for_offline_is_not_made_to_wait(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(network, "why_unreachable", lambda address: pytest.fail("the network was asked"))
    with hub_at_once() as why:
        assert why is None
    assert constants.HF_HUB_OFFLINE


def test_the_network_is_blamed_only_for_what_the_cache_lacks():
    missing = type("LocalEntryNotFoundError", (FileNotFoundError,), {})("not there")
    assert what_failed(missing, "nobody answers") == "nobody answers"
    assert what_failed(missing, None) == "LocalEntryNotFoundError: not there"
    assert what_failed(OSError("disk full"), "nobody answers") == "OSError: disk full"


@pytest.mark.parametrize("name", ["resnet18.a1_in1k", "vim_tiny", "hf-hub:timm/resnet18.a1_in1k"])
def test_without_a_network_published_weights_fail_at_once(name, monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    began = time.monotonic()
    with pytest.raises(CheckpointError, match=r"could not be had \(127.0.0.1 cannot be reached.*checkpoint=FILE"):
        load_model(name, pretrained=True)
    assert time.monotonic() - began < 8


def test_digits_that_cannot_be_downloaded_are_refused_at_once(tmp_path):
    code = "from repshift.analysis.samples.canvases import download_digits; download_digits()"
    environment = {**os.environ, "HOME": str(tmp_path), "https_proxy": "127.0.0.1:9", "http_proxy": "127.0.0.1:9"}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert "MNIST could not be downloaded (127.0.0.1 cannot be reached" in ended.stderr
