"""Several processes train as one: real ones, over Gloo, killed for real."""

import os

import pytest
import torch

from common.command.config import TrainConfig
from common.networks.checkpoint import load_checkpoint
from common.training.together import check_processes
from tests.common.training.test_loop import assert_same, contents
from tests.sharing import (
    STEPPED,
    STEPS,
    TASKS,
    UNEVEN,
    Logged,
    interrupted,
    judged,
    key_at,
    learn,
    loss_gradients,
    start,
    torchrun,
    toy,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ended(work, folder):
    """Exit code, stdout and stderr of each of two processes."""
    started = start(work, folder)
    return [(process.returncode, *texts) for process in started for texts in [process.communicate(timeout=200)]]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """What two processes have computed together, and the folder of their runs."""
    folder = tmp_path_factory.mktemp("shared")
    for code, out, err in ended("compute", folder):
        assert code == 0, err
        assert not out
    return torch.load(folder / "found.pt", weights_only=False), folder


def test_every_loss_has_the_gradient_of_the_whole_batch(shared):
    alone = loss_gradients()
    for name, (value, gradient) in shared[0]["losses"].items():
        assert value == pytest.approx(alone[name][0], abs=1e-12), name
        torch.testing.assert_close(gradient, alone[name][1], rtol=0, atol=1e-12)
        assert gradient.any(), name


@pytest.mark.parametrize("task", TASKS)
def test_a_step_is_that_of_one_process_though_half_of_the_batch_has_no_label(shared, task):
    alone, both = learn(task, torch.float64, 1), shared[0][task]
    assert both["losses"] == pytest.approx(alone["losses"], abs=1e-12)
    for part in ("gradients", "state"):
        assert alone[part].keys() == both[part].keys()
        for name, value in alone[part].items():
            torch.testing.assert_close(both[part][name], value, rtol=0, atol=1e-10, msg=f"{part} {name}")
    assert any("running_var" in name for name in alone["state"])


@pytest.mark.parametrize("task", STEPPED)
def test_twenty_steps_in_single_precision_stay_together(shared, task):
    alone, both = learn(task, torch.float32, STEPS), shared[0][f"{task} {STEPS}"]
    assert both["losses"] == pytest.approx(alone["losses"], abs=1e-5)
    for name in alone["gradients"]:
        torch.testing.assert_close(both["state"][name], alone["state"][name], rtol=0, atol=1e-5, msg=name)


def test_validation_counts_are_those_of_one_process_on_an_odd_number_of_images(shared):
    assert shared[0]["scores"] == judged()


def test_a_run_of_two_that_was_stopped_goes_on_as_if_it_had_not_been(shared):
    assert_same(contents(shared[1] / "parts"), contents(shared[1] / "whole"))
    states = [load_checkpoint(shared[1] / name / "last.pt")[2] for name in ("parts", "whole")]
    assert len(states[0]["others_rng"]) == 1 and not torch.equal(
        states[0]["rng"]["torch"], states[0]["others_rng"][0]["torch"]
    )


def test_one_two_one_processes_see_the_same_samples_in_the_same_order(tmp_path):
    toy(tmp_path / "alone", Logged(tmp_path / "alone-order"))
    folder = tmp_path / "run"
    interrupted(folder, Logged(tmp_path / "order-1", key_at(0, 1, 0)))
    done = torchrun("-m", "tests.sharing", "go on, SIGTERM to one", tmp_path)
    assert done.returncode != 0 and "Interrupted" not in done.stderr
    said = [line for line in done.stderr.splitlines() if "stopped by signal" in line]
    assert said == [f"stopped by signal 15 and saved; go on with --resume {folder / 'last.pt'}"]
    gone(tmp_path)
    state = load_checkpoint(folder / "last.pt")[2]
    assert (state["epoch"], state["batch"]) == (2, 1)
    toy(folder, Logged(tmp_path / "order-3"), resume=True)
    first, second = ((tmp_path / f"order-2-{rank}").read_text().splitlines() for rank in (0, 1))
    dealt = [x for i in range(0, len(second), 2) for x in _dealt(first[i // 2 * 3 : i // 2 * 3 + 3], second[i : i + 2])]
    before, after = ((tmp_path / f"order-{part}-0").read_text().splitlines() for part in (1, 3))
    assert before + dealt + after == (tmp_path / "alone-order-0").read_text().splitlines()
    assert (len(before), len(dealt), len(after)) == (10, 15, 15)
    weights = [load_checkpoint(where / "last.pt")[1] for where in (tmp_path / "alone", folder)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-5, atol=1e-5)


def _dealt(first, second):
    return [first[0], second[0], first[1], second[1], first[2]]


def gone(folder):
    """No process of the work is left."""
    for path in folder.glob("pid-*"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)
    assert len(list(folder.glob("pid-*"))) == 2


def test_a_killed_process_ends_the_others_and_the_run_resumes(tmp_path):
    done = torchrun("-m", "tests.sharing", "SIGKILL of one", tmp_path)
    assert done.returncode != 0
    gone(tmp_path)
    own = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(own) <= 1 and all("--resume" in line for line in own), done.stderr
    assert load_checkpoint(tmp_path / "run" / "last.pt")[2]["epoch"] == 1
    state = toy(tmp_path / "run", Logged(), resume=True)
    assert len(state.history) == UNEVEN.epochs


def test_a_loss_that_is_not_finite_ends_all_and_names_the_whole_batch(shared):
    (first, _), (second, _) = shared[0]["told"]
    assert first == second and first.startswith("NonFiniteLoss: the loss became nan in epoch 1, batch 2; its files: ")
    assert all(f"blob{key_at(0, 1, number)[0]}.png" in first for number in range(UNEVEN.batch_size))


def test_a_mistake_of_all_is_found_by_the_first_alone(shared):
    (_, first), (_, second) = shared[0]["told"]
    assert first == "ValueError: invalid literal for int() with base 10: 'no number'" and second == "SystemExit: 2"


def test_a_mistake_of_another_process_says_whose_it_is(tmp_path):
    (first, _, said), (second, out, told) = ended("mistake of the second", tmp_path)
    assert (first, second) == (1, 2)
    assert told == "process 2 of 2: error: the second cannot read\n" and not out
    assert said.splitlines()[-1].startswith("error: another process of this training has ended")
    assert "Traceback" not in said


def test_what_processes_cannot_share_is_refused(monkeypatch):
    check_processes(TrainConfig(batch_size=1, compile="on"), 100)
    monkeypatch.setattr("common.processes.count", lambda: 4)
    check_processes(TrainConfig(batch_size=4), 100)
    for config, samples in ((TrainConfig(batch_size=3), 100), (TrainConfig(batch_size=8), 3)):
        with pytest.raises(
            ValueError, match="a batch of 3 samples cannot be shared by 4 processes; raise --batch-size"
        ):
            check_processes(config, samples)
    with pytest.raises(ValueError, match="--compile on is for one process"):
        check_processes(TrainConfig(compile="on"), 100)
