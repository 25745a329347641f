"""The promises of the harness's model: boundaries, cuts, counts and batches are right, and nothing is asked twice."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys

import pytest

import mobilemoe
from mobilemoe.errors import DataError, UsageError
from mobilemoe.hub import ASSETS
from tiny_model import write_model

pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance

from mobilemoe.evaluate.models.harness import HarnessModel
from mobilemoe.evaluate.models.request_cache import RequestCache
from mobilemoe.evaluate.models.scorer import ModelScorer

WORDS = re.findall(r"\w+", "The little river ran past seven old houses and a mill before it met the sea again")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("harness") / "model", seed=3)


@pytest.fixture(scope="module")
def model(folder):
    return mobilemoe.load(folder, threads=1)


@pytest.fixture
def harness(model, tmp_path):
    return HarnessModel(model, cache_dir=tmp_path / "kept")


def asks(kind, *arguments):
    return [Instance(kind, doc={}, arguments=each, idx=0) for each in arguments]


def score(harness, *arguments):
    return harness.loglikelihood(asks("loglikelihood", *arguments))


def write(harness, *arguments):
    return harness.generate_until(asks("generate_until", *arguments))


def text_of(words, start=0):
    return " ".join(WORDS[(start + 7 * at) % len(WORDS)] for at in range(words))


@pytest.mark.parametrize("order", ["import lm_eval, mobilemoe.evaluate", "import mobilemoe.evaluate, lm_eval"])
def test_importing_the_room_tells_the_harness_of_the_model_and_loads_nothing_heavy(order):
    code = (
        f"import sys; {order}\n"
        "heavy = {'torch', 'datasets', 'lm_eval.evaluator', 'mobilemoe.evaluate.models.harness'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
        "import lm_eval.models\n"
        "from lm_eval.api.registry import get_model\n"
        "print(get_model('mobilemoe').__name__, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["HarnessModel", "False"]


def test_without_the_harness_the_room_can_be_imported_and_its_model_says_what_to_install():
    code = (
        "import sys; sys.modules['lm_eval'] = None\n"
        "import mobilemoe.evaluate.compare.bits_per_byte\n"
        "from mobilemoe.errors import MissingExtraError\n"
        "try: import mobilemoe.evaluate.models.harness\n"
        "except MissingExtraError as fault: print(fault)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "mobilemoe[eval]" in done.stdout


def test_words_are_scored_behind_their_context_with_bos_before_it(harness, model):
    [(logprob, greedy)] = score(harness, ("The old", " mill ran"))
    whole, context = model.encode("The old mill ran"), model.encode("The old")
    assert whole[: len(context)] == context
    assert (logprob, greedy) == model.loglikelihood(context, whole[len(context) :])


def test_blanks_at_the_end_of_a_context_belong_to_the_words_behind_it(harness):
    assert score(harness, ("The old ", "mill")) == score(harness, ("The old", " mill"))


def test_a_text_without_context_stands_behind_bos(harness, model):
    ids = model.tokenizer.encode("The old mill")
    assert score(harness, ("", "The old mill")) == [model.loglikelihood([model.tokenizer.bos_id], ids)]


def test_a_text_that_a_template_wrote_gets_no_second_bos(harness, model):
    prompt = harness.apply_chat_template([{"role": "user", "content": "Is it deep?"}])
    expected = model.encode(messages=[{"role": "user", "content": "Is it deep?"}])
    assert harness.tok_encode(prompt) == expected
    assert expected.count(model.tokenizer.bos_id) == 1


def test_an_answer_that_is_begun_goes_on_inside_its_message(harness):
    begun = [{"role": "user", "content": "Deep?"}, {"role": "assistant", "content": "It is"}]
    assert harness.apply_chat_template(begun, add_generation_prompt=False).endswith("\n\nIt is")


def test_a_context_that_is_too_long_loses_its_beginning_and_is_counted(harness, model):
    long = text_of(400)
    found = score(harness, (long, " the sea"), ("The", " sea"))
    ids = harness.tok_encode(long + " the sea")[-257:]
    assert found[0] == model.loglikelihood(ids[:-2], ids[-2:])
    assert harness.left_truncations == 1


@pytest.mark.parametrize("continuation", [text_of(300), ""])
def test_a_continuation_that_cannot_be_scored_is_an_error(harness, continuation):
    with pytest.raises(DataError, match="must have from 1 to the 256"):
        score(harness, ("The", continuation))


def test_a_long_text_is_scored_token_by_token_in_windows_that_overlap_little(harness, model):
    text = text_of(400)
    ids, bos = harness.tok_encode(text), model.tokenizer.bos_id
    assert 256 < len(ids) < 512
    rest = len(ids) - 256
    expected = model.loglikelihood([bos], ids[:256])[0] + model.loglikelihood(ids[-257:-rest], ids[-rest:])[0]
    assert harness.loglikelihood_rolling(asks("loglikelihood_rolling", (text,))) == [expected]
    assert harness.left_truncations == 0


def test_every_answer_is_as_it_is_alone_and_in_the_order_asked(harness, model):
    prompts = [text_of(9, at % 5) + text_of(at % 7, at) for at in range(40)]  # more than run together; many begin alike
    given = write(
        harness, *[(prompt, {"until": ["e", ""], "max_gen_toks": 3 + at % 5}) for at, prompt in enumerate(prompts)]
    )
    alone = [model.generate(prompt, stop="e", max_new_tokens=3 + at % 5) for at, prompt in enumerate(prompts)]
    assert given == alone
    assert any("e" not in model.generate(prompt, max_new_tokens=3) for prompt in prompts)


def test_answers_that_use_up_their_tokens_are_counted(harness):
    free, *_ = write(harness, ("The mill", {"until": [], "max_gen_toks": 8}))
    assert harness.token_cap_hits == 1
    write(harness, ("The mill", {"until": [free[:2]], "max_gen_toks": 8}))
    assert harness.token_cap_hits == 1


def test_a_prompt_leaves_room_for_its_answer(harness, model):
    long = text_of(400)
    [given] = write(harness, (long, {"max_gen_toks": 20}))
    written = model.engine.generate_ids(harness.tok_encode(long)[-236:], max_new_tokens=20)
    writer = model.writer(20)
    assert given == "".join(map(writer.push, written))
    assert harness.left_truncations == 1
    write(harness, ("The mill", {"max_gen_toks": 4096}))  # more than the context holds
    assert harness.left_truncations == 1


def test_samples_of_one_prompt_differ_and_can_be_had_again(model, tmp_path):
    asked = [("The mill", {"do_sample": True, "temperature": 1.0, "max_gen_toks": 8})] * 3
    first = write(HarnessModel(model, cache_dir=tmp_path / "a"), *asked)
    assert len(set(first)) == 3
    assert write(HarnessModel(model, cache_dir=tmp_path / "b"), *asked) == first


def test_a_setting_that_would_change_answers_is_not_passed_over(harness):
    with pytest.raises(UsageError, match="num_beams"):
        write(harness, ("The mill", {"num_beams": 4}))


def test_order_and_company_of_requests_change_nothing(model, tmp_path):
    arguments = [(text_of(6, at % 3), " " + text_of(1 + at % 4, at)) for at in range(30)]
    forth = score(HarnessModel(model, cache_dir=tmp_path / "a"), *arguments)
    back = score(HarnessModel(model, cache_dir=tmp_path / "b"), *arguments[::-1])
    alone = [score(HarnessModel(model, cache_dir=tmp_path / "c"), each)[0] for each in arguments]
    assert forth == back[::-1] == alone


def test_what_was_answered_is_not_asked_again(model, tmp_path, monkeypatch):
    pairs, prompt = [("The", " sea"), ("The old", " mill")], ("The mill", {"max_gen_toks": 4})
    first = HarnessModel(model, cache_dir=tmp_path)
    scores, answers = score(first, *pairs), write(first, prompt)
    again = HarnessModel(model, cache_dir=tmp_path)
    monkeypatch.setattr(ModelScorer, "loglikelihoods", lambda *_: pytest.fail("asked again"))
    monkeypatch.setattr(ModelScorer, "generate", lambda _, prompts: iter(pytest.fail("asked again") if prompts else ()))
    assert (score(again, *pairs), write(again, prompt)) == (scores, answers)
    assert again.token_cap_hits == first.token_cap_hits
    assert again.tokens_of(prompt) == first.tokens_of(prompt) == len(first.tok_encode("The mill")) + 4


def test_other_weights_or_settings_have_a_cache_of_their_own(folder, model, tmp_path):
    other = write_model(tmp_path / "other", seed=4)
    ways = [HarnessModel(model, cache_dir=tmp_path / "kept")]
    ways.append(HarnessModel(str(folder), activations="fp32", threads=1, cache_dir=tmp_path / "kept"))
    ways.append(HarnessModel(str(folder), kv="fp16", threads=1, cache_dir=tmp_path / "kept"))
    ways.append(HarnessModel(str(other), threads=1, cache_dir=tmp_path / "kept"))
    assert len({score(way, ("The old", " mill"))[0] for way in ways}) == 4
    assert len(list((tmp_path / "kept").iterdir())) == 4
    HarnessModel(str(folder), threads=2, cache_dir=tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 4


def test_a_line_that_a_kill_tore_is_dropped_and_the_others_kept(tmp_path):
    settings = {"model": "x"}
    RequestCache(settings, tmp_path).put({"a": [-0.1, True], "b": [-1e-30, False]})
    [path] = tmp_path.glob("*/requests.jsonl")
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        kept = RequestCache(settings, tmp_path)
        assert ("a" in kept) == (length >= whole.index(b"\n"))
        assert "b" not in kept or length == len(whole) - 1
        kept.put({"c": ["é", 1, False]})
        again = RequestCache(settings, tmp_path)
        assert again["c"] == ["é", 1, False]
        assert ("a" in again, "b" in again) == ("a" in kept, "b" in kept)


ODD = ("5", "null", '"x"', '"xy"', "[]", "{}", '["c"]', '["c", 5]', '["c", null]', '["c", "text"]', '["c", [1, 2]]')
ODD += ('["c", [NaN, true]]', '["c", [-0.1, 1]]', '["c", ["text", 1.5, false]]', '["c", ["text", 3, null]]', "[5, 6]")
ODD += ('[["c"], [-0.1, true]]', '["c", [-0.1, true], 3]', "[" * 100_000, '["c", [-0.1, tru', '"\\ud800"', "\xff", "")


@pytest.mark.parametrize("line", ODD)
def test_a_line_that_holds_no_answer_is_passed_over(tmp_path, line):
    settings = {"model": "x"}
    RequestCache(settings, tmp_path).put({"a": [-0.1, True]})
    [path] = tmp_path.glob("*/requests.jsonl")
    whole = path.read_bytes()
    path.write_bytes(line.encode("latin-1") + b"\n" + whole)
    kept = RequestCache(settings, tmp_path)
    assert kept["a"] == [-0.1, True]
    assert "c" not in kept


def test_answers_that_another_user_could_have_written_are_not_believed(tmp_path):
    settings = {"model": "x"}
    RequestCache(settings, tmp_path).put({"a": [-0.1, True]})
    [path] = tmp_path.glob("*/requests.jsonl")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for place, mode in ((path, 0o666), (path, 0o620), (path.parent, 0o777)):
        before = stat.S_IMODE(place.stat().st_mode)
        place.chmod(mode)
        with pytest.raises(DataError, match=r"another user could have written its answers.*--cache"):
            RequestCache(settings, tmp_path)
        place.chmod(before)
    assert RequestCache(settings, tmp_path)["a"] == [-0.1, True]
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="no regular file"):
        RequestCache(settings, tmp_path)
    path.unlink()
    path.touch()
    os.truncate(path, 2**36)
    with pytest.raises(DataError, match=r"68719476736 bytes, more than"):
        RequestCache(settings, tmp_path)


def test_a_folder_of_other_settings_that_was_moved_there_is_not_believed(tmp_path):
    RequestCache({"model": "x"}, tmp_path).put({"a": [-0.1, True]})
    [folder] = tmp_path.iterdir()
    RequestCache({"model": "y"}, tmp_path)
    [other] = [path for path in tmp_path.iterdir() if path != folder]
    shutil.rmtree(other)
    folder.rename(other)
    with pytest.raises(DataError, match="another folder was moved there"):
        RequestCache({"model": "y"}, tmp_path)


def test_encoding_many_requests_is_told(model, tmp_path):
    told = []
    harness = HarnessModel(model, cache_dir=tmp_path, on_progress=lambda *news: told.append(news))
    score(harness, *[("The", " sea")] * 600)
    write(harness, *[("The", {"max_gen_toks": 2})] * 300)
    encoding = [(done, total) for done, total, kind in told if kind == "encoding"]
    assert encoding == [(256, 600), (512, 600), (256, 300)]


def test_progress_goes_from_what_is_kept_to_all(model, tmp_path):
    told = []
    harness = HarnessModel(model, cache_dir=tmp_path, on_progress=lambda *news: told.append(news))
    score(harness, ("The", " sea"), ("The", " mill"))
    write(harness, *[(text_of(at, at), {"max_gen_toks": 2}) for at in range(3, 6)])
    score(harness, ("The", " sea"), ("The", " sea"), ("The", " old"))
    assert told[:2] == [(0, 2, "log-likelihood"), (2, 2, "log-likelihood")]
    assert told[2:6] == [(done, 3, "generation") for done in range(4)]
    assert told[6:] == [(1, 2, "log-likelihood"), (2, 2, "log-likelihood")]


def test_pytorch_answers_as_the_exact_engine(folder, tmp_path):
    pytest.importorskip("torch")
    pairs = [(text_of(6, at), " " + text_of(2, at)) for at in range(12)]
    prompts = [(text_of(2 + at, at), {"until": ["."], "max_gen_toks": 3 + at % 4}) for at in range(20)]
    ways = [{"backend": "torch"}, {"activations": "fp32", "threads": 1}]
    torch, native = [HarnessModel(str(folder), cache_dir=tmp_path, **way) for way in ways]
    for ours, theirs in zip(score(torch, *pairs), score(native, *pairs), strict=True):
        assert ours == (pytest.approx(theirs[0], abs=1e-3), theirs[1])
    assert write(torch, *prompts) == write(native, *prompts)


def test_a_loaded_model_takes_no_options(model):
    with pytest.raises(UsageError, match="threads"):
        HarnessModel(model, threads=2)


@pytest.mark.slow
def test_lm_evals_own_command_knows_the_model(tmp_path):
    (tmp_path / "data.jsonl").write_text(
        "".join(json.dumps({"q": text_of(5, at), "a": [" mill", " sea"], "gold": at % 2}) + "\n" for at in range(6))
    )
    (tmp_path / "task.yaml").write_text(
        "task: rivers\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'data.jsonl'}}}, cache_dir: {tmp_path / 'hf'}}}\n"
        "output_type: multiple_choice\ntest_split: test\ndoc_to_text: q\ndoc_to_choice: a\ndoc_to_target: gold\n"
        "target_delimiter: ''\nmetric_list: [{metric: acc}]\n"
    )
    args = ["--model", "mobilemoe", "--model_args", f"pretrained={ASSETS / 'nano'},threads=1,cache_dir={tmp_path}"]
    args += ["--tasks", "rivers", "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")]
    call = [sys.executable, "-m", "mobilemoe.evaluate", *args]
    done = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    [path] = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(path.read_text())["n-samples"]["rivers"]["effective"] == 6


@pytest.mark.slow
def test_an_error_of_ours_is_one_line_of_the_command(tmp_path):
    call = [sys.executable, "-m", "mobilemoe.evaluate", "--model", "mobilemoe", "--model_args", "pretrained=nano,kv=no"]
    done = subprocess.run([*call, "--tasks", "piqa"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "kv is 'no'" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
