"""Promises of `mobilemoe plan`: units, refusals in one sentence, and files that the next verb takes."""

import pytest

from drawn import colours, curve, labels
from mobilemoe import accounting
from mobilemoe.cli.quantity import BYTES, COUNTS, quantity
from mobilemoe.presets import preset
from mobilemoe.profile import device as device_module
from mobilemoe.scaling.law.published import published
from mobilemoe.train.estimate import architecture
from mobilemoe.train.recipe import load_recipe

ASKED = ("--memory", "1.0GB", "--decode", "40", "--ttft", "3", "--prompt", "1024", "--context", "4096")
ASKED += ("--device", "galaxy-s25", "--train-flops", "8e20")


@pytest.fixture(autouse=True)
def no_saved_device(monkeypatch, tmp_path):
    monkeypatch.setattr(device_module, "_saved", lambda: tmp_path / "devices")


def test_the_table_names_the_first_choice_and_all_that_it_rests_on(mobilemoe_cli):
    ended = mobilemoe_cli("plan", *ASKED)
    assert ended.status == 0
    assert "shared" in ended.out
    assert "runner-up:" in ended.out
    assert "10% on memory (1.10 GB)" in ended.out
    assert "models are equivalent to it, within the law's error of 0.0076 (RMSE of its fit)" in ended.out
    assert "process" in ended.out
    assert "galaxy-s25" in ended.out
    assert max(map(len, ended.out.split("models considered")[0].splitlines())) <= 120


def test_json_is_one_object_with_the_ranked_candidates(mobilemoe_cli):
    found = mobilemoe_cli("plan", *ASKED, "--top", "3", "--json").json
    assert len(found["candidates"]) == 3
    first = found["candidates"][0]
    assert first["memory"] <= 1e9
    assert first["low"] < first["loss"] < first["high"]
    assert (found["memory_of"], found["speed_error"]) == ("process on galaxy-s25", 0.0973)
    assert first["memory"] > 1.16 * first["weights"] > first["weights"] + first["kv"]
    assert first["decode_least"] == pytest.approx(first["decode"] * (1 - 0.0973))
    assert first["decode_least"] >= 40
    assert found["equivalent"]["count"] > 1
    assert found["constraints"]["train_flops"] == 8e20
    assert found["considered"] >= 1e5
    assert found["seconds"] > 0


@pytest.mark.parametrize(
    ("text", "size"), [("1.0GB", 1e9), ("900MB", 9e8), ("1GiB", 2**30), ("1e9", 1e9), ("1 gb", 1e9), ("0.5e9B", 5e8)]
)
def test_memory_has_units(text, size):
    assert quantity("--memory", text, BYTES, "") == size


@pytest.mark.parametrize(("text", "count"), [("300B", 3e11), ("0.3T", 3e11), ("3e11", 3e11), ("500M", 5e8)])
def test_tokens_have_units(text, count):
    assert quantity("--tokens", text, COUNTS, "") == pytest.approx(count)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--memory", "much"), "--memory is 'much', but must be a positive number, such as 1.0GB"),
        (("--memory", "-1GB"), "--memory is '-1GB', but must be a positive number"),
        (("--memory", "1e999"), "--memory is '1e999', but must be a positive number"),
        (("--memory", "0"), "--memory is '0', but must be a positive number, such as 1.0GB"),
        (("--tokens", "300GB"), "--tokens is '300GB'"),
        (("--train-flops", "8e20", "--tokens", "1B"), "either --train-flops or --tokens"),
        (("--decode", "0", "--device", "galaxy-s25"), "--decode is 0.0"),
        (("--context", "0"), "--context is 0"),
        (("--context", "9" * 30), "--context is 9999"),
        (("--prompt", "9" * 30), "--prompt is 9999"),
        (("--vocabulary", "9" * 30), "--vocabulary holds 9999"),
        (("--decode", "40"), "measure this machine first"),
        (("--max-memory", "much"), "--max-memory is 'much'"),
        (("--max-memory", "1GB"), "--max-memory needs a least speed to --decode"),
        (("--max-memory", "1GB", "--memory", "1GB"), "either --memory, for models that fit into it, or --max-memory"),
        (("--flash", "1GB", "--memory", "1GB"), "give --max-memory and --device too"),
        (("--flash", "0", "--max-memory", "1GB", "--decode", "20", "--device", "galaxy-s25"), "--flash is '0'"),
        (("--ttft", "1", "--device", "nokia-3310"), "galaxy-s25"),
        (("--law", "kaplan"), "paper-joint"),
        (("--vocabulary", "many"), "--vocabulary is 'many'"),
        (("--vocabulary", "-5"), "--vocabulary holds -5, but must be above 0"),
        (("--weight-bits", "3"), "--weight-bits holds 3"),
        (("--tying", "loose"), "--tying is 'loose', but must be one of tied, untied, both"),
        (("--top", "0"), "--top is 0"),
        (("--write", "a name.toml"), "the recipe's name"),
    ],
)
def test_wrong_calls_are_one_sentence_and_status_2(fails, arguments, words):
    assert words in fails(2, "plan", *arguments)


def test_what_fits_nowhere_is_one_sentence_that_names_the_limit(fails):
    text = fails(1, "plan", "--memory", "10MB", "--decode", "40", "--device", "galaxy-s25")
    missing = "needs 63 MB of process memory, 53 MB more than --memory"
    assert f"no candidate fits: the smallest that decodes at 40 tok/s {missing}" in text


def test_the_best_larger_than_memory_is_told_beside_the_best_that_fits(mobilemoe_cli):
    limits = ("--max-memory", "700MB", "--decode", "20", "--device", "galaxy-s25", "--train-flops", "1e22")
    said = mobilemoe_cli("plan", *limits, "--flash", "4GB").out
    assert "larger than memory pays" in said
    assert "4 GB/s (as the device or --flash says)" in said
    assert "% held" in said
    found = mobilemoe_cli("plan", *limits, "--flash", "4GB", "--json").json["larger_than_memory"]
    assert found["pays"]
    assert found["fits"]["held"] == 1


def test_memory_alone_is_refused_with_what_to_add(fails):
    text = fails(2, "plan", "--memory", "2GB", "--device", "galaxy-s25")
    assert "add --decode or --ttft with a --device, --flops or --train-flops" in text


def test_few_tokens_are_not_shown_as_none(mobilemoe_cli):
    out = mobilemoe_cli("plan", "--memory", "1GB", "--flops", "0.6e9", "--tokens", "100M").out
    assert "100 M" in out
    assert " 0 B" not in out


def test_the_machine_s_own_profile_is_taken_where_no_device_is_named(mobilemoe_cli):
    phone = device_module.device("galaxy-s25")
    values = {**vars(phone), "name": "this-machine"}
    device_module.Device(**values).save(device_module.saved_path("this-machine"))
    assert mobilemoe_cli("plan", "--decode", "40", "--json").json["device"] == "this-machine"
    assert mobilemoe_cli("plan", "--memory", "1GB", "--flops", "0.6e9", "--json").json["device"] is None


def test_a_fitted_law_is_read_from_its_file(mobilemoe_cli, tmp_path):
    published("paper-E").save(tmp_path / "law.json")
    ours = mobilemoe_cli("plan", "--memory", "1GB", "--flops", "0.6e9", "--law", tmp_path / "law.json", "--json").json
    theirs = mobilemoe_cli("plan", "--memory", "1GB", "--flops", "0.6e9", "--law", "paper-E", "--json").json
    assert ours["candidates"] == theirs["candidates"]
    assert {c["granularity"] for c in ours["candidates"]} <= {1, 8}  # which that law knows nothing of


@pytest.mark.parametrize("options", [(), ("--vocabulary", "32000", "--tying", "untied", "--context", "16384")])
def test_the_recipe_is_one_that_train_plans_with(mobilemoe_cli, tmp_path, options):
    path = tmp_path / "mine.toml"
    found = mobilemoe_cli(
        "plan", "--memory", "1.0GB", "--flops", "0.6e9", "--tokens", "100B", *options, "--write", path, "--json"
    ).json
    first = found["candidates"][0]
    recipe = load_recipe(path)
    config = architecture(recipe.model)
    assert recipe.name == "mine"
    assert accounting.total_parameters(config) == first["n_total"]
    assert accounting.int4_file_bytes(config) == first["weights"]
    assert config.max_position_embeddings >= (16384 if options else 4096)
    train = recipe.train
    assert train.steps * train.batch_size * train.sequence_length == pytest.approx(100e9, rel=1e-3)
    assert "memory 1.00 GB" in path.read_text()
    assert max(map(len, path.read_text().splitlines())) <= 120
    planned = mobilemoe_cli("train", path, "--plan", "--json").json
    assert planned["total_parameters"] == first["n_total"]


def test_a_dense_first_choice_is_a_recipe_too(mobilemoe_cli, tmp_path):
    path = tmp_path / "dense.toml"
    mobilemoe_cli("plan", "--memory", "1GB", "--flops", "0.6e9", "--law", "chinchilla", "--write", path)
    config = architecture(load_recipe(path).model)
    assert config.ffn_type == "dense"
    assert config.vocab_size == preset("S").vocab_size
    assert load_recipe(path).train.capacity_factor is None


def test_a_recipe_is_never_overwritten(fails, mobilemoe_cli, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("kept")
    assert "exists already" in fails(2, "plan", "--memory", "1GB", "--write", path)
    assert path.read_text() == "kept"


def test_the_picture_shows_the_first_choice_and_the_limits_over_four_costs(mobilemoe_cli, tmp_path, figures):
    ended = mobilemoe_cli("plan", *ASKED, "--report", tmp_path / "plan.html", "--png", tmp_path / "plan.png", "--json")
    first = ended.json["candidates"][0]
    assert colours((tmp_path / "plan.png").read_bytes()) > 50
    of_page, figure = figures
    assert len(of_page.axes) == len(figure.axes) == 4
    costs = (first["memory"] / 1e9, first["flops"] / 1e9, 1e3 / first["decode_least"], 1e3 * first["ttft_most"])
    limits = (1.0, None, 25.0, 3000.0)  # GB, none on FLOPs, ms a token at 40 tok/s, ms to the first token
    for axes, cost, limit in zip(figure.axes, costs, limits, strict=True):
        assert curve(axes, "first choice") == [(pytest.approx(cost), first["loss"])]
        assert ("limit" in labels(axes)) == (limit is not None)
        if limit is not None:
            assert [x for x, _ in curve(axes, "limit")] == pytest.approx([limit, limit])
        assert axes.get_ylabel() == "loss (nats per token)"
    assert [axes.get_xlabel().split(",")[0] for axes in figure.axes] == [
        *("memory", "GFLOPs per decoded token", "ms per decoded token after 4", "ms to the first token"),
    ]


def test_the_page_names_the_candidates_that_the_verb_does(mobilemoe_cli, tmp_path):
    ended = mobilemoe_cli("plan", *ASKED, "--report", tmp_path / "plan.html", "--top", "3", "--json")
    text = (tmp_path / "plan.html").read_text()
    for candidate in ended.json["candidates"]:
        assert f"{candidate['score']:.3f}<br>" in text
    assert text.count("<tr>") == 1 + 3
