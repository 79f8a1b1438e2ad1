"""Results of an evaluation and of a benchmark, as files of them hold them."""

import pytest

from repshift.analysis.output.results import Results


@pytest.fixture
def cpu():
    """What results say of the machine."""
    return {"device": "cpu (some maker)"}


@pytest.fixture
def evaluated():
    """Make a row of an evaluation."""

    def make(method, schedule, top1, gmacs, model="vit", **more):
        shift = {"operation": "mlp", "distance": "l2", "residual": False} if method == "shift" else {}
        row = {"model": model, "top1": top1, "method": method, "schedule": schedule, "gmacs": gmacs, "samples": 2000}
        return {**row, "samples_per_sec": 50.0, "batch_size": 256, "precision": "float32", **shift, **more}

    return make


@pytest.fixture
def timed():
    """Make a row of a benchmark."""

    def make(method, schedule, speed, batch_size=64, model="vit", **more):
        row = {
            "model": model,
            "method": method,
            "schedule": schedule,
            "samples_per_sec": speed,
            "batch_size": batch_size,
        }
        return {**row, "gmacs": 1.0, "precision": "bfloat16", **more}

    return make


@pytest.fixture
def eval_results(evaluated, cpu):
    return Results(
        "eval",
        [
            evaluated("shift", "0.2@0,2", 90.0, 0.8),
            evaluated("dense", None, 95.0, 1.0),
            evaluated("random", "0.2@0,2", 80.0, 0.8),
        ],
        cpu,
    )


@pytest.fixture
def bench_results(timed):
    return Results(
        "bench",
        [
            timed("dense", "", 100.0),
            timed("shift", "0.2@0,2", 150.0),
            timed("shift", "0.2@0,2", 120.0, batch_size=1),
            timed("oracle_free", "0.2@0,2", 160.0),
        ],
        {"device": "a GPU"},
    )
