"""Losses and gradients are right, and Trainer, TRL and PEFT train a model of ours as any other."""

import shutil

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, Trainer, TrainingArguments

import mobilemoe
from hf_models import FAMILY_LIKE, opened, tokens, write
from mobilemoe.hub import ASSETS
from model_configs import NANO_IDS, but, loaded


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("hf") / "model")


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory):
    """A tiny BF16 model behind nano's tokenizer."""
    folder = tmp_path_factory.mktemp("hf") / "chat"
    write(folder, but(FAMILY_LIKE, vocab_size=16_384, **NANO_IDS))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ASSETS / "nano" / name, folder)
    return folder


def arguments(folder, **options):
    return {
        "output_dir": str(folder),
        "max_steps": 8,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        **options,
    }


def losses(trainer):
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_the_loss_is_the_mean_over_the_labels_that_count(folder):
    model, tokens_BT = opened(folder), tokens(2, 9)
    labels_BT = tokens_BT.clone()
    labels_BT[0, :4] = -100
    loss = model(tokens_BT, labels=labels_BT).loss
    with torch.no_grad():
        logits_BTV = loaded(folder)(tokens_BT)
    want = torch.nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), labels_BT[:, 1:].flatten())
    assert torch.isclose(loss, want, rtol=1e-5)


def test_the_auxiliary_loss_is_added_with_its_weight_and_only_where_asked_for(folder):
    model, tokens_BT = opened(folder), tokens(2, 9)
    plain = model(tokens_BT, labels=tokens_BT)
    assert plain.aux_loss is None
    model.config.router_aux_loss_coef = 0.5
    out = model(tokens_BT, labels=tokens_BT, output_router_logits=True)
    assert torch.isclose(out.loss, plain.loss + 0.5 * out.aux_loss)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(reentrant, folder):
    gradients = []
    for checkpointing in (False, True):
        model, tokens_BT = opened(folder).train(), tokens(2, 9)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model(tokens_BT, labels=tokens_BT).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-4, atol=1e-7), name


def test_gradients_are_those_of_our_own_model(folder):
    tokens_BT, ours, theirs = tokens(2, 9), loaded(folder), opened(folder).train()
    theirs(tokens_BT, labels=tokens_BT).loss.backward()
    logits_BTV = ours(tokens_BT)
    torch.nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1), tokens_BT[:, 1:].flatten()).backward()
    expected = {name: parameter.grad for name, parameter in ours.named_parameters()}
    for name, parameter in theirs.named_parameters():
        assert torch.allclose(parameter.grad, expected[name], rtol=1e-3, atol=1e-6), name


def test_trainer_lowers_the_loss_and_what_it_saves_opens_here(folder, tmp_path):
    rows = Dataset.from_list([{"input_ids": row, "labels": row} for row in tokens(4, 12).tolist()])
    trainer = Trainer(
        opened(folder), TrainingArguments(**arguments(tmp_path, gradient_checkpointing=True)), train_dataset=rows
    )
    first, *_, last = losses(trainer)
    assert last < first - 0.5
    trainer.save_model(tmp_path / "saved")
    ids = [5, 6, 7]
    with torch.no_grad():
        want = trainer.model(torch.tensor([ids])).logits[0]
    got = torch.from_numpy(mobilemoe.load(tmp_path / "saved", backend="torch").logits(ids))
    assert torch.allclose(got, want, atol=1e-5)


def test_an_int4_model_is_not_trained_by_mistake(tmp_path):
    model = opened(write(tmp_path / "model", form="int4-in"))
    assert not any(p.requires_grad for name, p in model.named_parameters() if "qweight" in name or "scale" in name)
    with pytest.raises(ValueError, match="quantized"):
        Trainer(model, TrainingArguments(**arguments(tmp_path)), train_dataset=[])


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_trl_fine_tunes_on_conversations_with_lora_and_the_merged_model_opens_here(chat_folder, tmp_path):
    peft, trl = pytest.importorskip("peft"), pytest.importorskip("trl")
    tokenizer = AutoTokenizer.from_pretrained(chat_folder)
    talk = [{"role": "user", "content": "Name a colour."}, {"role": "assistant", "content": "Blue."}]
    trainer = trl.SFTTrainer(
        opened(chat_folder),
        args=trl.SFTConfig(**arguments(tmp_path, max_length=64)),
        train_dataset=Dataset.from_list([{"messages": talk}] * 8),
        processing_class=tokenizer,
        peft_config=peft.LoraConfig(r=8, target_modules=["q_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM"),
    )
    first, *_, last = losses(trainer)
    assert last < first - 0.1
    merged = trainer.model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    reopened = mobilemoe.load(tmp_path / "merged", backend="torch")
    ids = reopened.encode(messages=talk[:1])
    with torch.no_grad():
        want = merged(torch.tensor([ids])).logits[0]
    assert torch.allclose(torch.from_numpy(reopened.logits(ids)), want, atol=1e-4)
