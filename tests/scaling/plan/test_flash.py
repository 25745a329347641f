"""Models larger than memory: what of them is held, how fast they are then, and whether the best of them pays."""

import dataclasses

import numpy as np
import pytest

from mobilemoe import accounting
from mobilemoe.errors import UsageError
from mobilemoe.profile.device import device
from mobilemoe.scaling.law.published import published
from mobilemoe.scaling.plan.candidates import tabulate
from mobilemoe.scaling.plan.flash import NANO_HITS, hit_rate
from mobilemoe.scaling.plan.limits import Constraints
from mobilemoe.scaling.plan.plan import plan
from mobilemoe.scaling.plan.space import Space, config_of
from scaling_runs import PHONE

LAW = published("paper-joint")
SPACE = Space(experts=(1, 4, 8), granularities=(8,), widths=(512, 768, 1280), ratios=(40,), head_dims=(64,))
KNOWN = dataclasses.replace(PHONE, error=0.1, process_weights=1.2, process_kv=5.0, flash_bandwidth=2e9)
CAP = 1e9
ASKED = Constraints(max_memory=CAP, decode=20, tokens=2e11, prompt=1300)


def test_hits_are_nanos_at_the_measured_points_and_never_fall_with_more_room():
    room, hits = (np.array(values) for values in zip(*NANO_HITS, strict=True))
    np.testing.assert_array_equal(hit_rate(room), hits)
    assert hit_rate(np.array([0.425]))[0] == pytest.approx((0.54 + 0.73) / 2)
    assert np.all(np.diff(hit_rate(np.linspace(0, 1, 1001))) > 0)


def test_each_row_is_as_fast_as_the_slower_of_computing_and_reading():
    table, whole = (
        tabulate(SPACE, LAW, KNOWN, ASKED),
        tabulate(SPACE, LAW, KNOWN, Constraints(tokens=2e11, prompt=1300)),
    )
    assert {"some fit", "some do not"} == {"some fit" if held == 1 else "some do not" for held in table.held}
    for row in range(len(table)):
        config = config_of(table.shapes[table.block[row]], int(table.place[row]), ASKED.context)
        routed = sum(p.int4_bytes for p in accounting.parts(config) if p.name.startswith("routed experts"))
        others = accounting.file_bytes(config, 4) - routed
        room = CAP - 1.2 * others - 5.0 * accounting.kv_bytes(config, ASKED.context)
        held = min(max(room / (1.2 * routed), 0), 1) if routed else float(whole.memory[row] <= CAP)
        assert table.held[row] == pytest.approx(held)
        share = config.num_experts_per_tok / config.num_local_experts if routed else 0
        computing = 1 / whole.decode[row]
        reading = (1 - float(hit_rate(np.array(held)))) * share * routed / 2e9
        assert table.decode[row] == pytest.approx(1 / max(computing, reading))
        assert table.ttft[row] == pytest.approx(max(whole.ttft[row], 3 * (1 - held) * routed / 2e9))
        assert table.decode_least[row] == pytest.approx(0.9 * table.decode[row])
        one_layer = share * routed / config.num_hidden_layers
        assert table.least_memory[row] == pytest.approx(whole.memory[row] - 1.2 * (routed - one_layer))


def test_without_a_cap_nothing_changes_and_of_a_dense_model_nothing_may_stay_outside():
    limits = Constraints(tokens=2e11, decode=20)
    table = tabulate(SPACE, LAW, KNOWN, limits)
    assert np.all(table.held == 1)
    assert np.array_equal(table.decode, table.decode_whole)
    assert np.array_equal(table.ttft, table.ttft_whole)
    dense = table.experts == 1
    assert np.array_equal(table.least_memory[dense], table.memory[dense])
    capped = dataclasses.replace(limits, max_memory=float(table.memory[dense].max()) - 1)
    assert not tabulate(SPACE, LAW, KNOWN, capped).allowed(capped)[dense].all()


def test_fast_flash_makes_a_larger_model_pay_and_slow_flash_does_not():
    """Both are told side by side, and the larger wins only by more than the law's error."""
    limits = Constraints(max_memory=0.7e9, decode=20, train_flops=1e22)
    phone = device("galaxy-s25")
    found = {speed: plan(limits, device=dataclasses.replace(phone, flash_bandwidth=speed)) for speed in (1e6, 4e9)}
    fits_alone = plan(Constraints(memory=0.7e9, decode=20, train_flops=1e22), device=phone)
    for each in found.values():
        assert each.larger.fits == dataclasses.replace(fits_alone.candidates[0], equivalent=each.larger.fits.equivalent)
        assert each.larger.fits.held == 1
        assert each.larger.fits.memory <= 0.7e9
    slow, fast = found[1e6].larger, found[4e9].larger
    assert not slow.pays
    assert fast.pays
    assert fast.larger.memory > 0.7e9
    assert fast.larger.held < 1
    assert fast.larger.decode_least >= 20
    gain = fast.fits.loss + fast.fits.prior - fast.larger.loss - fast.larger.prior
    assert gain > found[4e9].equivalent.error
    for candidate in (fast.fits, fast.larger):
        assert (
            f"loss {candidate.loss + candidate.prior:.{found[4e9].digits}f}, {candidate.decode:.3g} tok/s"
            in fast.verdict
        )
    assert "larger than memory pays" in fast.verdict
    assert found[4e9].candidates[0].score <= found[1e6].candidates[0].score


def test_it_says_when_no_larger_model_pays():
    phone = device("galaxy-s25")
    roomy = plan(Constraints(max_memory=60e9, decode=20, train_flops=1e22), device=phone)
    assert roomy.larger.verdict == "no model larger than memory keeps to the limits"
    assert roomy.larger.larger is None
    near = plan(Constraints(max_memory=2e9, decode=20, train_flops=8e21), device=phone).larger
    assert not near.pays
    assert "does not pay" in near.verdict
    assert "within the law's error" in near.verdict or "gains nothing" in near.verdict


def test_a_cap_never_gives_a_worse_plan_than_the_same_limit_on_the_whole_model():
    phone = device("galaxy-s25")
    for size in (0.5e9, 1e9, 2e9):
        budget = {"decode": 15, "train_flops": 1e22}
        capped = plan(Constraints(max_memory=size, **budget), device=phone)
        whole = plan(Constraints(memory=size, **budget), device=phone)
        assert capped.candidates[0].score <= whole.candidates[0].score
        assert capped.equivalent.least <= whole.equivalent.least


def test_the_plan_as_json_has_both_models_and_the_verdict():
    found = plan(ASKED, device=KNOWN, space=SPACE).as_json()["larger_than_memory"]
    assert set(found) == {"fits", "larger", "pays", "verdict"}
    assert found["larger"] is None or 0 < found["larger"]["held"] < 1
    assert plan(Constraints(memory=CAP, decode=20), device=KNOWN, space=SPACE).as_json()["larger_than_memory"] is None


def test_what_is_assumed_is_said():
    assumed = " ".join(plan(ASKED, device=PHONE, space=SPACE).notes)
    assert "1 GB/s (ASSUMED, since nobody measured it: say --flash)" in assumed
    assert "those of nano" in assumed
    assert "2 GB/s (as the device or --flash says)" in " ".join(plan(ASKED, device=KNOWN, space=SPACE).notes)
    assert "flash" not in " ".join(plan(Constraints(memory=CAP, decode=20), device=PHONE, space=SPACE).notes)


def test_a_plan_that_fits_nowhere_says_with_which_cap_it_would():
    limits = Constraints(max_memory=1e7, decode=40)
    found = plan(limits, device=KNOWN, space=SPACE)
    assert not found.candidates
    assert "--max-memory" in found.infeasible[0]
    table, low, high = found.table, 1e7, float(found.table.memory.max())
    for _ in range(60):
        middle = (low + high) / 2
        keeps = table.under(middle).allowed(dataclasses.replace(limits, max_memory=middle)).any()
        low, high = (low, middle) if keeps else (middle, high)
    assert f"runs in {high / 1e6:.0f} MB" in found.infeasible[0]


def test_limits_that_cannot_be_are_refused():
    with pytest.raises(UsageError, match="either `memory`, for models that fit into it, or `max_memory`"):
        Constraints(memory=1e9, max_memory=1e9)
    with pytest.raises(UsageError, match="`max_memory` needs a least speed to `decode`"):
        plan(Constraints(max_memory=1e9), device=PHONE)
