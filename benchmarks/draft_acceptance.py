"""Measures how many guesses of a model's draft head are right, by domain: tokens a pass of T rows.

python benchmarks/draft_acceptance.py MODEL [--draft draft.safetensors] [--texts 24] [--tokens 128]

The model continues held-out texts and conversations, greedily and at temperature 0.7. The head then guesses along what
was written, as it would have while it was written: a pass of T rows holds the last token and T - 1 guesses, and gives
as many tokens as guesses were right, and one more. States and head are computed in PyTorch. The last line is one JSON
object.
"""

import argparse
import json
import random
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

import mobilemoe
from mobilemoe.checkpoint import Checkpoint
from mobilemoe.checkpoint.draft import DRAFT, DraftFile
from mobilemoe.data.practice.write import write_practice
from mobilemoe.load import Model
from mobilemoe.model import MobileMoE
from mobilemoe.model.draft import Draft
from mobilemoe.quant.fake import fake_int8
from mobilemoe.sampling import Sampling

HELDOUT = Path(__file__).parent.parent / "tests" / "data" / "heldout.jsonl"
GROUPS = {"books": "prose", "textbooks": "prose", "code": "code", "specs": "docs", "docs": "docs", "chat": "chat"}
MODES = {"greedy": Sampling(), "sampled": Sampling(temperature=0.7, seed=3)}
PROMPT = 96  # tokens of a text before what the model writes
ROWS = (2, 3, 4)  # of a pass
Text = tuple[list[int], list[int]]  # the prompt, and what the model wrote


def prompts(model: Model, count: int) -> dict[str, list[list[int]]]:
    """Up to `count` prompts of each domain: beginnings of held-out text, and conversations before an answer."""
    source, found = random.Random(7), defaultdict(list)
    for line in HELDOUT.read_text().splitlines():
        row = json.loads(line)
        if "messages" in row:
            found["chat"].append(before_the_last_answer(model, row["messages"]))
            continue
        ids = model.tokenizer.encode(row["text"])
        start = source.randrange(max(1, len(ids) - 2 * PROMPT))
        found[GROUPS[row["domain"]]].append([model.tokenizer.bos_id, *ids[start : start + PROMPT]])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "practice.jsonl"
        write_practice(path, 20 * count, seed=7777)
        for row in map(json.loads, path.read_text().splitlines()):
            if row["category"] == "sums":
                found["sums"].append(before_the_last_answer(model, row["messages"]))
    for some in found.values():
        source.shuffle(some)
    return {domain: found[domain][:count] for domain in ("prose", "code", "docs", "chat", "sums")}


def before_the_last_answer(model: Model, messages: list[dict[str, str]]) -> list[int]:
    last = max(at for at, message in enumerate(messages) if message["role"] == "assistant")
    return model.encode(messages=messages[:last])


def written(model: Model, some: list[list[int]], sampling: Sampling, tokens: int) -> list[Text]:
    """What the model writes after each prompt, up to a stop token."""
    batch, made = model.engine.start(some, tokens, sampling), [[] for _ in some]
    running = set(range(len(some)))
    while running:
        for number, choice in batch.step():
            made[number].append(int(choice.token))
            if choice.token in model.stop_ids or len(made[number]) == tokens:
                running.remove(number)
                batch.leave(number)
    return list(zip(some, made, strict=True))


@torch.inference_mode()
def guesses(net: MobileMoE, head: Draft, ids: list[int]) -> np.ndarray:
    """[3, T - 1]: what the head guesses in 3 steps after each of the T ids but the last, whose next one it knows."""
    tokens = torch.tensor([ids])
    state, made = net.hidden(tokens)[0][0, :-1], []
    embedding = net.model.embed_tokens(tokens[0, 1:])
    for _ in range(max(ROWS) - 1):
        state, logits = head(state, embedding)
        made.append(head.shortlist_K[logits.argmax(-1)])
        embedding = net.model.embed_tokens(made[-1])
    return torch.stack(made).numpy()


def tokens_a_pass(texts: list[Text], made: list[np.ndarray], rows: int) -> float:
    tokens = passes = 0
    for (prompt, answer), guess in zip(texts, made, strict=True):
        ids, at = [*prompt, *answer], len(prompt)
        while at < len(ids) - 1:
            right = 0
            while right < rows - 1 and at + 1 + right < len(ids) and guess[right, at - 1] == ids[at + 1 + right]:
                right += 1
            tokens, passes, at = tokens + right + 1, passes + 1, at + right + 1
    return tokens / passes


def open_head(model: Model, path: Path) -> Draft:
    file = DraftFile(path, model.config)
    head = Draft(model.config.hidden_size, file.shape.width, file.shape.shortlist, model.config.rms_norm_eps)
    for name in file.shape.matrices:
        head.get_submodule(name).weight.data = torch.from_numpy(file.weight(name))
    head.shortlist_K.copy_(torch.from_numpy(np.array(file.shortlist_K)))
    for name in file.shape.matrices:  # as the engine rounds them
        head.get_submodule(name).register_forward_pre_hook(lambda _, inputs: (fake_int8(inputs[0]),))
    return head.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--draft", type=Path, help="a draft head (default: the model's own)")
    parser.add_argument("--texts", type=int, default=24, help="of each domain")
    parser.add_argument("--tokens", type=int, default=128, help="written after each")
    asked = parser.parse_args()
    model = mobilemoe.load(asked.model)
    head = open_head(model, asked.draft or model.folder / DRAFT)
    with Checkpoint.open(model.folder) as checkpoint:
        net = MobileMoE(checkpoint.config).eval()
        net.load_weights(checkpoint.weight)
    results: dict[str, dict[str, list[float]]] = {}
    print(f"tokens a pass of {', '.join(map(str, ROWS))} rows")
    for domain, some in prompts(model, asked.texts).items():
        for mode, sampling in MODES.items():
            texts = written(model, some, sampling, asked.tokens)
            made = [guesses(net, head, [*prompt, *answer]) for prompt, answer in texts]
            shares = [round(tokens_a_pass(texts, made, rows), 4) for rows in ROWS]
            results.setdefault(domain, {})[mode] = shares
            print(f"{domain:6} {mode:8} {' '.join(f'{share:.2f}' for share in shares)}", flush=True)
    print(json.dumps({"model": asked.model, "rows": ROWS, "tokens_a_pass": results}))


if __name__ == "__main__":
    main()
