"""Probes are torch's: draws bit for bit, every prediction after hundreds of steps."""

import numpy as np
import pytest
import torch

from eval.transfer import draws, probe
from eval.transfer.probe import Split
from eval.transfer.probe_step import Protocol

QUICK = {"max_epoch": 24, "tenacity": 2, "epoch_size": 2, "decays": (1e-5, 1e-2)}
ADAM = Protocol(**QUICK)
RMSPROP = Protocol(optimizer="rmsprop", batch=32, **QUICK)


def noisy(rows, width, classes, seed=0):
    """Features that tell the class only roughly, so that development scores go up and down."""
    state = np.random.RandomState(seed)
    x_MD = state.randn(rows, width).astype(np.float32)
    scores = x_MD @ state.randn(width, classes) + 3 * state.randn(rows, classes)
    return x_MD, np.argmax(scores, axis=1)


@pytest.mark.parametrize(("width", "classes"), [(3, 2), (128, 6), (768, 2)])
@pytest.mark.parametrize("seed", [0, 1111, 2**31])
def test_first_weights_are_torchs_bit_for_bit(width, classes, seed):
    torch.manual_seed(seed)
    linear = torch.nn.Linear(width, classes)
    w_YD, b_Y = draws.linear_weights(width, classes, seed)
    np.testing.assert_array_equal(w_YD, linear.weight.detach().numpy())
    np.testing.assert_array_equal(b_Y, linear.bias.detach().numpy())


@pytest.mark.parametrize(("rows", "folds", "classes"), [(100, 10, 2), (1003, 10, 6), (57, 5, 3)])
@pytest.mark.parametrize("order", ["mixed", "ascending", "descending"])
def test_folds_are_those_of_scikit_learn(rows, folds, classes, order):
    selection = pytest.importorskip("sklearn.model_selection")
    labels_M = np.random.RandomState(rows).randint(0, classes, rows)
    labels_M = {"mixed": labels_M, "ascending": np.sort(labels_M)}.get(
        order, np.sort(labels_M)[::-1].copy()
    )
    splitter = selection.StratifiedKFold(folds, shuffle=True, random_state=1111)
    expected = [test.tolist() for _, test in splitter.split(np.zeros(rows), labels_M)]
    got = draws.stratified_folds(labels_M, folds, 1111)
    assert [test.tolist() for test in got] == expected


def test_folds_are_a_partition_with_the_classes_in_proportion():
    labels_M = np.repeat([2, 0, 1], [50, 31, 20])
    tests = draws.stratified_folds(labels_M, 10, 7)
    assert sorted(np.concatenate(tests)) == list(range(101))
    for test in tests:
        assert abs(np.bincount(labels_M[test], minlength=3) - [3.1, 2, 5]).max() <= 1


def test_held_out_rows_and_shuffles_continue_one_stream():
    train, development = draws.held_out(40, 0.05, 3)
    state = np.random.RandomState(3)
    order = state.permutation(40)
    assert (development.tolist(), train.tolist()) == (order[:2].tolist(), order[2:].tolist())
    got = draws.shuffles(38, 3, 3, drawn_rows=40)
    np.testing.assert_array_equal(got, [state.permutation(38) for _ in range(3)])


@pytest.mark.fast("protocol2-3")
@pytest.mark.parametrize(("protocol", "classes"), [(ADAM, 2), (ADAM, 6), (RMSPROP, 3)])
def test_every_prediction_is_that_of_a_plain_torch_probe(protocol, classes, torch_probe):
    x_MD, y_M = noisy(403, 24, classes)
    rows = np.arange(403)
    tests = draws.stratified_folds(y_M, 5, 1111)[:2]
    splits = [Split(np.delete(rows, test), test) for test in tests]
    train, development = draws.held_out(403, 0.05, 1111)
    splits.append(Split(train, development, 403))
    decay_XW = np.tile(protocol.decays, (len(splits), 1))
    got = probe.fit(
        x_MD, y_M, splits, decay_XW, classes=classes, protocol=protocol, seed=1111, slots=2
    )
    for j, split in enumerate(splits):
        for w, decay in enumerate(protocol.decays):
            best, model = torch_probe.fit(x_MD, y_M, split, decay, classes, protocol, 1111)
            assert got.right_XW[j, w] == best
            predicted = probe.predict(x_MD, got.w_XWYD[j, w], got.b_XWY[j, w])
            np.testing.assert_array_equal(predicted, torch_probe.predict(model, x_MD))
            weight, bias = (p.detach().numpy() for p in model.parameters())
            np.testing.assert_allclose(got.w_XWYD[j, w], weight, atol=2e-6)
            np.testing.assert_allclose(got.b_XWY[j, w], bias, atol=2e-6)


@pytest.mark.slow
def test_a_fit_does_not_depend_on_its_slot_its_neighbors_or_the_number_of_slots():
    x_MD, y_M = noisy(120, 9, 2)
    rows = np.arange(120)
    splits = [Split(np.delete(rows, part), part) for part in np.split(rows, [7, 30, 64])]
    decay_XW = np.tile(ADAM.decays, (4, 1))
    told = []

    def fit(chosen, slots):
        return probe.fit(
            x_MD,
            y_M,
            [splits[j] for j in chosen],
            decay_XW[: len(chosen)],
            classes=2,
            protocol=ADAM,
            seed=5,
            slots=slots,
            advance=told.append,
        )

    together = fit(range(4), 4)
    assert sum(told) == 4
    for chosen, slots in (([3, 1, 0, 2], 1), ([2], 9), ([0, 1, 2, 3], 3)):
        apart = fit(chosen, slots)
        for place, j in enumerate(chosen):
            np.testing.assert_allclose(apart.w_XWYD[place], together.w_XWYD[j], atol=1e-6)
            assert apart.right_XW[place].tolist() == together.right_XW[j].tolist()


def test_same_input_gives_the_same_bits_and_the_seed_matters():
    x_MD, y_M = noisy(80, 5, 2)
    split = Split(np.arange(60), np.arange(60, 80))

    def fit(seed):
        return probe.fit(
            x_MD, y_M, [split], np.array([[1e-4]]), classes=2, protocol=ADAM, seed=seed
        )

    np.testing.assert_array_equal(fit(1).w_XWYD, fit(1).w_XWYD)
    assert not np.array_equal(fit(1).w_XWYD, fit(2).w_XWYD)


@pytest.mark.slow
def test_real_vectors_and_the_whole_protocol_give_torchs_predictions(data, torch_probe):
    from eval.transfer import scores as transfer_scores
    from eval.transfer.tasks import read_transfer
    from prompteol_jax import Embedder

    (task,) = read_transfer(data / "senteval", ["CR"])
    embedder = Embedder.from_pretrained(str(data / "weights" / "tinystories-656k"), dtype="float32")
    ((x_MD, y_M),) = (vars(part).values() for part in transfer_scores.features(embedder, task))
    protocol = transfer_scores.SENTEVAL
    rows = np.arange(len(y_M))
    test = draws.stratified_folds(y_M, 10, 1111)[3]
    train, development = draws.held_out(len(y_M), 0.05, 1111)
    splits = [Split(np.delete(rows, test), test), Split(train, development, len(y_M))]
    decay_XW = np.tile(protocol.decays, (2, 1))
    got = probe.fit(x_MD, y_M, splits, decay_XW, classes=2, protocol=protocol, seed=1111)
    for j, split in enumerate(splits):
        for w, decay in enumerate(protocol.decays):
            best, model = torch_probe.fit(x_MD, y_M, split, decay, 2, protocol, 1111)
            assert got.right_XW[j, w] == best
            predicted = probe.predict(x_MD, got.w_XWYD[j, w], got.b_XWY[j, w])
            np.testing.assert_array_equal(predicted, torch_probe.predict(model, x_MD))
