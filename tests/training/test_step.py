"""N workers train as one: the same losses and the same gradients at the same global batch, by every engine."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("parity_worker.py")
ZERO = ("zero0", "zero1", "zero2", "zero3")
ADAM = ("adam0", "adam1", "adam2", "adam3")
ALIGNED = ("aligned", "aligneddeaf", "alignedzero3")
RESUMED = ("resume2", "resume3")
EXPOSED = ("exposed", "exposedzero3")
TWO_WORKERS = (
    "plain",
    "deaf",
    *ALIGNED,
    *EXPOSED,
    "strided",
    "sparse",
    "bf16",
    *ZERO,
    "offload2",
    *ADAM,
    "bf16zero2",
    *RESUMED,
)
Read = Callable[[str], dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One worker and two workers side by side, each through all its cases."""
    directory = tmp_path_factory.mktemp("parity")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    runs = [
        (0, 1, ("plain", "exposed", "aligned", "sparse")),
        *((rank, 2, TWO_WORKERS) for rank in range(2)),
    ]
    logs = [directory / f"{rank}_of_{world}.log" for rank, world, _ in runs]  # a pipe may be full before it is read
    processes = []
    for (rank, world, cases), log in zip(runs, logs, strict=True):
        command = [sys.executable, str(WORKER), str(rank), str(world), str(port), str(directory), *cases]
        with log.open("w") as file:
            processes.append(subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT))
    for process, log in zip(processes, logs, strict=True):
        assert process.wait(timeout=240) == 0, log.read_text()[-4000:]
    return directory


@pytest.fixture
def read(out: Path) -> Read:
    return lambda name: dict(np.load(out / f"{name}.npz"))


def largest(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one - other).max())


def test_two_workers_give_the_losses_and_gradients_of_one(read: Read) -> None:
    one, two = read("plain_1"), read("plain_2")
    assert np.abs(one["gradient"]).max() > 1e-2
    assert largest(one["losses"], two["losses"]) < 1e-5
    assert largest(one["gradient"], two["gradient"]) < 1e-5
    assert largest(one["weights"], two["weights"]) < 1e-5


def test_weights_in_any_memory_layout_are_updated_by_their_own_gradients(read: Read) -> None:
    one, strided = read("plain_1"), read("strided_2")
    assert largest(one["losses"], strided["losses"]) < 1e-5
    assert largest(one["weights"], strided["weights"]) < 1e-5


def test_the_rows_of_sparse_tables_are_summed_over_the_workers(read: Read) -> None:
    one, two = read("sparse_1"), read("sparse_2")
    assert np.abs(one["gradient"]).max() > 1e-2
    assert largest(one["gradient"], two["gradient"]) < 1e-5
    assert largest(one["losses"], two["losses"]) < 1e-4


def test_a_gather_without_its_gradient_is_found_out(read: Read) -> None:
    one, deaf = read("plain_1"), read("deaf_2")
    assert abs(one["losses"][0] - deaf["losses"][0]) < 1e-5  # the first loss does not show it
    assert largest(one["gradient"], deaf["gradient"]) > 1e-3
    assert largest(one["losses"], deaf["losses"]) > 1e-3


def test_pairs_are_aligned_over_all_workers(read: Read) -> None:
    one, two, deaf, sharded = (read(name) for name in ("aligned_1", "aligned_2", "aligneddeaf_2", "alignedzero3_2"))
    for many in (two, sharded):
        assert largest(one["losses"], many["losses"]) < 1e-5
        assert largest(one["weights"], many["weights"]) < 1e-5
    assert largest(one["gradient"], two["gradient"]) < 1e-5
    assert abs(one["losses"][0] - deaf["losses"][0]) < 1e-5
    assert largest(one["gradient"], deaf["gradient"]) > 1e-3


@pytest.mark.parametrize("case", EXPOSED)
def test_what_one_worker_s_users_were_shown_is_encoded_by_all(read: Read, case: str) -> None:
    one, two = read("exposed_1"), read(f"{case}_2")
    assert largest(one["losses"], read("plain_1")["losses"]) > 1e-2
    assert largest(one["losses"], two["losses"]) < 1e-5
    assert largest(one["weights"], two["weights"]) < 1e-5


@pytest.mark.parametrize("case", [*ZERO, "offload2"])
def test_every_zero_stage_gives_the_losses_and_weights_of_one_worker(read: Read, case: str) -> None:
    one, sharded = read("plain_1"), read(f"{case}_2")
    assert largest(one["losses"], sharded["losses"]) < 1e-5
    assert largest(one["weights"], sharded["weights"]) < 1e-5


def test_bf16_is_near_fp32_and_alike_in_both_engines(read: Read) -> None:
    exact, plain, sharded = read("plain_1"), read("bf16_2"), read("bf16zero2_2")
    assert 1e-6 < largest(exact["losses"], plain["losses"]) < 0.01 * exact["losses"].max()
    assert largest(plain["losses"], sharded["losses"]) < 1e-2


def test_the_shards_of_each_rank_are_in_the_checkpoint_and_shrink_with_the_stage(out: Path) -> None:
    def kept(stage: int, pattern: str) -> list[int]:
        return [file.stat().st_size for file in sorted((out / f"adam{stage}").rglob(pattern))]

    assert kept(0, "zero_pp_rank_*") == []
    (whole,) = kept(0, "*model_states.pt")  # rank 0 alone: parameters and the optimizer's two moments
    for stage in (1, 2):
        shards = kept(stage, "zero_pp_rank_*optim_states.pt")
        assert len(shards) == 2  # each has half of master weights and moments
        assert max(shards) < 0.75 * whole
        assert len(kept(stage, "mp_rank_00_model_states.pt")) == 1
    assert len(kept(3, "zero_pp_rank_*optim_states.pt")) == 2
    models = kept(3, "zero_pp_rank_*model_states.pt")
    assert len(models) == 2
    assert max(models) < kept(2, "mp_rank_00_model_states.pt")[0]


@pytest.mark.parametrize("case", RESUMED)
def test_a_sharded_run_that_was_cut_goes_on_to_the_same_weights(read: Read, case: str) -> None:
    runs = read(case)
    assert len(runs["cut_losses"]) == 1
    assert len(runs["resumed_losses"]) == 2
    assert largest(runs["whole_weights"], runs["cut_weights"]) > 1e-3
    assert largest(runs["whole_losses"], runs["resumed_losses"]) < 1e-6
    assert largest(runs["whole_weights"], runs["resumed_weights"]) < 1e-6
