"""Seeds, and the state of every generator."""

import os
import random

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from fulmen.utilities.files import atomic_save, load_file
from fulmen.utilities.rank_zero import rank_zero_only
from fulmen.utilities.seed import (
    collect_rng_states,
    isolate_rng,
    pl_worker_init_function,
    reset_seed,
    seed_everything,
    set_rng_states,
)


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """No seed from outside, and none left behind."""
    for variable in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(variable, "")  # registers the old value for the end of the test
        monkeypatch.delenv(variable)
    with isolate_rng():
        yield


def draw() -> tuple[float, ...]:
    """A number from every generator, a Gaussian of each too, because they keep one in store."""
    return (
        torch.rand(1).item(),
        torch.randn(3).sum().item(),
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.randn()),
    )


def test_the_same_seed_gives_the_same_numbers():
    assert seed_everything(7) == 7
    first = draw()
    seed_everything(8)
    other = draw()
    seed_everything(7)

    assert draw() == first
    assert first != other


def test_the_generators_are_seeded_as_by_their_own_functions():
    seed_everything(5)
    numbers = (torch.rand(1).item(), random.random(), np.random.rand())
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)

    assert numbers == (torch.rand(1).item(), random.random(), np.random.rand())


def test_the_seed_is_left_in_the_environment_for_other_processes():
    seed_everything(11, workers=True)
    assert (os.environ["PL_GLOBAL_SEED"], os.environ["PL_SEED_WORKERS"]) == ("11", "1")
    seed_everything(11)

    assert os.environ["PL_SEED_WORKERS"] == "0"


@pytest.mark.parametrize(("given", "used"), [("12", 12), (3.7, 3), (True, 1), (np.int64(4), 4), (2**32 - 1, 2**32 - 1)])
def test_a_seed_becomes_an_integer(given, used):
    assert seed_everything(given) == used
    assert os.environ["PL_GLOBAL_SEED"] == str(used)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_bounds_is_refused(seed):
    with pytest.raises(ValueError, match=f"{seed} is not in bounds"):
        seed_everything(seed)


def test_a_seed_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="abc"):
        seed_everything("abc")  # type: ignore[arg-type]  # on purpose


def test_without_a_seed_the_environment_decides(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "23")
    assert seed_everything() == 23
    monkeypatch.setenv("PL_GLOBAL_SEED", "many")

    with pytest.raises(ValueError, match="`PL_GLOBAL_SEED` is 'many'"):
        seed_everything()


def test_without_any_seed_it_is_zero_with_a_warning():
    with pytest.warns(UserWarning, match="the seed is 0"):
        assert seed_everything() == 0


def test_the_seed_is_logged_unless_it_should_not(caplog, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    with caplog.at_level("INFO", logger="fulmen"):
        seed_everything(3)
        seed_everything(4, verbose=False)

    assert [record.message for record in caplog.records] == ["Seed set to 3"]
    assert caplog.records[0].filename == "test_seed.py"


def test_reset_goes_back_to_the_last_seed():
    before = torch.rand(1)
    reset_seed()  # no seed was set
    seed_everything(9, workers=True)
    first = draw()
    reset_seed()

    assert draw() == first
    assert os.environ["PL_SEED_WORKERS"] == "1"
    assert before is not None


def test_collected_states_bring_all_generators_back():
    draw()
    states = collect_rng_states()
    first = draw()
    draw()
    set_rng_states(states)

    assert draw() == first


def test_states_survive_a_file_that_holds_plain_data_only(tmp_path):
    random.gauss(0, 1)  # leaves a second one in store
    np.random.randn()
    atomic_save(collect_rng_states(), tmp_path / "rng.pt")
    first = draw()
    states = load_file(tmp_path / "rng.pt", weights_only=True)
    set_rng_states(states)

    assert draw() == first


def test_states_of_generators_that_are_not_there_are_passed_over():
    seed_everything(1)
    states = collect_rng_states()
    del states["numpy"]
    states["cuda"] = [torch.zeros(16, dtype=torch.uint8)] if not torch.cuda.is_available() else []
    first = np.random.rand()
    set_rng_states(states)

    assert np.random.rand() != first


def test_collecting_states_draws_nothing():
    seed_everything(1)
    collect_rng_states()
    first = draw()
    seed_everything(1)

    assert draw() == first


def test_what_happens_in_isolation_stays_there():
    seed_everything(1)
    expected = draw()
    seed_everything(1)
    with isolate_rng():
        seed_everything(99)
        draw()

    assert draw() == expected


def test_isolation_ends_after_an_error_too():
    seed_everything(1)
    expected = draw()
    seed_everything(1)

    def fail():
        with isolate_rng():
            draw()
            raise KeyError("inside")

    with pytest.raises(KeyError, match="inside"):
        fail()
    assert draw() == expected


class Noise(Dataset[torch.Tensor]):
    """Draws from every generator."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.tensor([torch.rand(1).item(), random.random(), np.random.rand()], dtype=torch.float64)


def noise_of(rank: int) -> torch.Tensor:
    torch.manual_seed(0)
    loader = DataLoader(Noise(), num_workers=2, worker_init_fn=lambda worker: pl_worker_init_function(worker, rank))
    return torch.cat(list(loader))


def test_workers_of_all_ranks_draw_different_numbers_and_the_same_again():
    first, again, other = noise_of(0), noise_of(0), noise_of(1)

    assert torch.equal(first, again)
    assert torch.cat([first, other]).unique().numel() == 2 * first.numel()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_generators_of_gpus_are_isolated_and_restored(tmp_path):
    seed_everything(1)
    torch.rand(1, device="cuda")
    atomic_save(collect_rng_states(), tmp_path / "rng.pt")
    first = torch.rand(3, device="cuda")
    set_rng_states(load_file(tmp_path / "rng.pt", map_location="cuda"))
    with isolate_rng():
        torch.rand(3, device="cuda")

    assert torch.equal(torch.rand(3, device="cuda"), first)
